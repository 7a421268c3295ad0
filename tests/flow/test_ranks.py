"""Several processes train as one does: the program forks them, which meet by gloo on this machine."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fmcore.flow.ranks import ranks
from repository import ROOT

pytestmark = pytest.mark.numerics


def program(path, count, ending="none", accumulate=1):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [
        sys.executable,
        str(ROOT / "tests/ranks_program.py"),
        str(count),
        ending,
        str(accumulate),
        str(path),
    ]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


def found(path, *args):
    ended = program(path, *args)
    assert ended.returncode == 0, ended.stderr
    return load_file(path)


@pytest.mark.parametrize(("ending", "apart"), [("none", 1e-6), ("meanflow", 1e-6)])
def test_two_and_four_processes_train_as_one(ending, apart, tmp_path):
    """Also by forward mode, where Adam's steps make more of the last bits."""
    one = found(tmp_path / "one", 1, ending, 4)
    for count, accumulate in ((2, 2), (4, 1)):
        many = found(tmp_path / str(count), count, ending, accumulate)
        assert many.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(many[key], value, rtol=1e-5, atol=apart)
        for rank in range(1, count):
            other = load_file(tmp_path / f"{count}.{rank}")
            assert all(torch.equal(other[key], many[key]) for key in many), "the same in all processes, to the bit"


def test_processes_that_begin_differently_are_told(tmp_path):
    ended = program(tmp_path / "x", 2, "different")
    assert ended.returncode == 1
    assert "state: expected the same in all 2 processes, got different ones" in ended.stderr


def test_a_batch_too_small_for_the_processes_is_told(tmp_path):
    ended = program(tmp_path / "x", 2, "none", 32)
    assert ended.returncode == 1
    assert "too few for 64 parts (accumulate times processes)" in ended.stderr


def test_alone_it_is_the_first_of_one():
    assert ranks() == (0, 1)
