"""What is said of an NVIDIA GPU that torch cannot use."""

import pytest
import torch

from flows.workshop import setup

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "version"


def test_without_a_driver_nothing_is_said(driver):
    assert setup.unused_gpu() is None


@pytest.mark.parametrize(
    ("cuda", "visible", "why"),
    [
        ("13.2", None, "needs a driver for CUDA 13.2, and driver 470.256.02 may be too old"),
        (None, None, "was built without CUDA"),
        ("13.2", "", "CUDA_VISIBLE_DEVICES hides it"),
    ],
)
def test_a_gpu_that_is_not_used_is_told_with_its_reason(cuda, visible, why, driver, monkeypatch):
    driver.write_text(VERSION)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert why in setup.unused_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert setup.unused_gpu() is None
