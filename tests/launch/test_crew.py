"""Stages that several processes share: what they make is what one makes, and none of them outlives the stage."""

import os
import subprocess
import time

import pandas as pd
import psutil
import pytest

from checkouts import Checkout, environment
from fmcore.disk.pairs import open_pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores"),
]
GOING_ON = "base: going on from step"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes, with many shards."""
    checkout = Checkout(tmp_path_factory.mktemp("alone"), "smoke")
    source = checkout.folder / "flows/stages/shards.py"
    source.write_text(source.read_text().replace("SHARD_BYTES = 16 * 2**20", "SHARD_BYTES = 32 * 2**10"))
    source = checkout.folder / "flows/stages/training.py"
    text = source.read_text().replace("CHECKPOINT_AT_MOST = 10.0, 0.02,", "CHECKPOINT_AT_MOST = 0.3, 1.0,")
    source.write_text(text)
    checkout.edit("couple.pairs", 10_000)
    checkout.edit("evaluate.repeats", 2)
    checkout.repro("evaluate@r1", "evaluate_base")
    return checkout


@pytest.fixture
def shared(alone, tmp_path):
    """The same, to be made again by two."""
    checkout = Checkout.copied(alone, tmp_path / "shared")
    checkout.edit("launch.processes", 2)
    return checkout


def test_two_processes_make_the_pairs_and_scores_of_one(alone, shared):
    said = shared.repro("--force", "--single-item", "couple@r1").text
    assert "couple@r1: 2 processes share it" in said
    (one, manifest), (two, about) = (open_pairs(c.folder / "couplings/r1") for c in (alone, shared))
    assert len(manifest["shards"]) > 4
    assert [shard["file"] for shard in manifest["shards"]] == [shard["file"] for shard in about["shards"]]
    assert (one.x0 == two.x0).all()
    assert (one.x1 - two.x1).abs().max() < 1e-4
    shared.repro("--force", "--single-item", "evaluate_base")
    tables = [pd.read_csv(c.folder / "scores/base/scores.csv") for c in (alone, shared)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


def test_two_processes_train_as_one(alone, shared):
    """Until rounding has grown: after thousands of steps of Adam the last digits of two runs are their own."""
    said = shared.repro("--force", "--single-item", "base").text
    assert "base: 2 processes share it" in said
    one, two = (pd.read_csv(c.folder / "curves/base.csv") for c in (alone, shared))
    assert list(one.step) == list(two.step)
    assert (one.loss[:5] - two.loss[:5]).abs().max() < 1e-4
    assert abs(one.loss.tail(10).mean() / two.loss.tail(10).mean() - 1) < 0.02


def begun(checkout):
    """The base in training, and the processes that share it: the one that leads, the other."""
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", "base"],
        cwd=checkout.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((checkout.folder / "work/base").glob("*/step-*.safetensors")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stage = [p for p in psutil.Process(process.pid).children(recursive=True) if "flows.launch" in p.cmdline()]
    (other,) = [p for p in stage if p.ppid() in {leading.pid for leading in stage}]
    return process, other.parent(), other


def test_when_one_is_killed_the_stage_ends_with_a_line_and_goes_on_with_any_number(shared):
    process, _, other = begun(shared)
    other.kill()
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "base: process 2 of 2 was ended by signal 9" in said
    assert "Traceback" not in said
    shared.edit("launch.processes", 1)
    assert GOING_ON in shared.repro("--force", "--single-item", "base").text


def test_when_the_one_that_leads_is_killed_none_trains_on(shared):
    process, leading, other = begun(shared)
    leading.kill()
    process.communicate(timeout=60)
    psutil.wait_procs([other], timeout=5)
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("launch.processes", 64, "launch.processes: expected at most"),
        ("launch.processes", 65, "launch.processes: expected a number from 1 to 64, got 65"),
        ("launch.processes", 0, "launch.processes: expected a number from 1 to 64, got 0"),
        (
            "base.train.batch_size",
            255,
            "base.train.batch_size: expected a multiple of 2 (launch.processes 2 times",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_first(shared, key, value, said):
    shared.edit(key, value)
    ended = shared.repro(check=False)
    assert ended.code != 0
    assert said in ended.text
    assert ended.ran in ([], ["check"])
