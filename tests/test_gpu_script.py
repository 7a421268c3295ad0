"""The GPU benchmark: its parts run on the CPU with tiny networks, its records are kept, skipped and retried."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.on_gpu import correctness, pages, parts, sizes, speed_of_training

pytestmark = pytest.mark.native

QUICK = replace(gpu.QUICK, train_large=(4,), pairs=(4,), steps=1)
NAMES = [part.name for part in gpu.parts(QUICK)]


@pytest.fixture(scope="module", autouse=True)
def _short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "QUICK", QUICK)
        yield


def quick(out, *options):
    return gpu.main(["--device", "cpu", "--quick", "--out", str(out), *options])


def records(out):
    (found,) = json.loads(out.with_suffix(".json").read_text()).values()
    return found


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The exit status of a first call and where its results are."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.md"
    return quick(out), out


@pytest.fixture
def again(first, tmp_path):
    """A copy of those results, for a test to change."""
    out = tmp_path / "gpu.md"
    out.with_suffix(".json").write_text(first[1].with_suffix(".json").read_text())
    return out


def forget(out, name):
    known = json.loads(out.with_suffix(".json").read_text())
    for found in known.values():
        del found[name]
    out.with_suffix(".json").write_text(json.dumps(known))


def killed(*args, **options):
    raise KeyboardInterrupt


def boom(*args):
    raise RuntimeError("a first line\nand a second")


def test_every_part_writes_finite_numbers(first):
    status, out = first
    found = records(out)
    assert status == 0
    assert list(found) == NAMES
    for record in found.values():
        assert record["status"] == "done"
        assert numbers(record["rows"])
        assert all(map(math.isfinite, numbers(record["rows"])))


def test_the_page_shows_every_section(first):
    text = first[1].read_text()
    for title in pages.TITLES.values():
        assert title in text
    assert {name.partition("/")[0] for name in NAMES} == set(pages.TITLES)


def test_rates_and_shares_are_those_of_the_seconds_measured(first):
    rows = records(first[1])[f"training/small/{gpu.QUICK.train_small}"]["rows"]
    rate = records(first[1])["matmul"]["rows"][0]["TFLOP/s"]
    theirs = next((row for row in rows if row["loop"] == "torchcfm"), {})
    for row in rows:
        if "images/s" in row:
            assert row["MFU"] == pytest.approx(row["TFLOP/s"] / rate)
            if "images/s" in theirs:
                assert row["over torchcfm"] == pytest.approx(row["images/s"] / theirs["images/s"])


def test_a_second_call_skips_what_is_done(again, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "run", boom)
    before = again.with_suffix(".json").read_text()
    assert quick(again) == 0
    assert again.with_suffix(".json").read_text() == before
    assert "correctness/" not in capsys.readouterr().err


def test_other_devices_and_versions_have_results_of_their_own(again, monkeypatch):
    monkeypatch.setattr(gpu, "described", lambda device, quick: ("another", "another"))
    assert quick(again, "--minutes", "0") == 0
    assert "Left for another call: " + ", ".join(NAMES) in again.read_text()


def test_a_part_that_raises_is_recorded_and_the_rest_goes_on(again, monkeypatch):
    forget(again, "matmul")
    forget(again, "one step/small")
    with monkeypatch.context() as patch:
        patch.setattr(parts, "matmul", boom)
        assert quick(again) == 1
    assert records(again)["matmul"] == {"status": "failed", "error": "RuntimeError: a first line"}
    assert records(again)["one step/small"]["status"] == "done"
    assert "- matmul: RuntimeError: a first line" in again.read_text()
    assert quick(again, "--minutes", "0") == 1  # still failed, for want of time
    assert quick(again) == 0
    assert records(again)["matmul"]["status"] == "done"


def test_numbers_that_are_not_finite_fail_the_part(again, monkeypatch):
    forget(again, "matmul")
    monkeypatch.setattr(parts, "matmul", lambda bench: [{"TFLOP/s": math.inf}])
    assert quick(again) == 1
    assert records(again)["matmul"]["error"].startswith("ValueError")


def test_results_beyond_their_tolerance_are_shown_and_looked_at_again(again, monkeypatch):
    forget(again, "correctness/mlp")
    with monkeypatch.context() as patch:
        patch.setattr(correctness, "BF16", 1e-9)
        assert quick(again) == 1
    rows = records(again)["correctness/mlp"]["rows"]
    assert [row["what"] for row in rows if not row[sizes.OK]] == ["forward, bf16"]
    assert quick(again, "--minutes", "0") == 1
    with monkeypatch.context() as patch:
        patch.setattr(parts, "correctness", killed)
        with pytest.raises(KeyboardInterrupt):
            quick(again)
    assert records(again)["correctness/mlp"] == {"status": "begun", "rows": rows} | {
        key: value for key, value in records(again)["correctness/mlp"].items() if key == "seconds"
    }
    assert quick(again, "--minutes", "0") == 1, "what was known stays known"
    assert quick(again) == 0
    assert all(row[sizes.OK] for row in records(again)["correctness/mlp"]["rows"])


def test_a_loop_that_fails_leaves_the_others_measured(again, monkeypatch):
    name = f"training/small/{gpu.QUICK.train_small}"
    forget(again, name)
    monkeypatch.setattr(speed_of_training, "torchcfm_steps", boom)
    assert quick(again) == 1
    *rows, last = records(again)[name]["rows"]
    assert last["loop"] == "torchcfm"
    assert last["prepared"] == "failed: RuntimeError: a first line"
    assert rows
    assert all(row["images/s"] > 0 for row in rows)
    assert "failed: RuntimeError: a first line" in again.read_text()


def test_what_a_call_was_killed_in_is_begun_again_last(again, monkeypatch):
    forget(again, "matmul")
    forget(again, "one step/small")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "matmul", killed)
        with pytest.raises(KeyboardInterrupt):
            quick(again)
    assert "Left for another call: matmul, one step/small." in again.read_text()
    order = []
    run = gpu.run
    monkeypatch.setattr(gpu, "run", lambda part, bench: order.append(part.name) or run(part, bench))
    assert quick(again) == 0
    assert order == ["one step/small", "matmul"]


def test_without_torchcfm_its_loop_is_skipped_and_said_so(again, monkeypatch):
    name = f"training/small/{gpu.QUICK.train_small}"
    forget(again, name)
    monkeypatch.setattr(speed_of_training, "find_spec", lambda module: None)
    assert quick(again) == 0
    rows = records(again)[name]["rows"]
    assert "over torchcfm" not in rows[0]
    assert rows[-1]["prepared"] == "not installed, skipped"


def test_without_a_gpu_it_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_cpu_is_for_quick_runs(capsys):
    with pytest.raises(SystemExit) as raised:
        gpu.main(["--device", "cpu"])
    assert raised.value.code == 2
    assert "--quick" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.slow
def test_two_minutes_on_a_gpu(tmp_path):
    # In a process of its own: the tests' deterministic algorithms are not what is measured.
    script, out = Path(gpu.__file__), tmp_path / "gpu.md"
    command = [sys.executable, str(script), "--minutes", "2", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = records(out)
    assert {"correctness/mlp", "correctness/small", "resume", "matmul"} <= set(found)
    assert all(map(math.isfinite, numbers(found)))
