"""Stages forked from the warm process behave as the command that DVC started."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flows.launch import forkserver as warm
from repository import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")

# A stand-in for flows.launch.runner in a checkout of its own: what it does is what DVC_STAGE says.
RUNNING = """
import os, sys, time

def run(stage):
    print(stage, os.environ.get("MARK"), os.getcwd(), "torch" in sys.modules, flush=True)
    if stage == "sleep":
        time.sleep(60)
    if stage == "crash":
        raise RuntimeError("on purpose")
    return 3 if stage == "fail" else 0
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "flows", tmp_path / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "flows/launch/runner.py").write_text(RUNNING)
    process = subprocess.Popen(["sleep", "120"])  # the pipeline's life is this process's
    created = psutil.Process(process.pid).create_time()
    monkeypatch.setenv("FMCORE_PIPELINE", f"{process.pid}-{created:.2f}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    process.kill()
    process.wait()


def start(checkout, stage, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "flows.launch"],
        cwd=checkout,
        env={**os.environ, "DVC_STAGE": stage, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def say(checkout, stage, **env):
    process = start(checkout, stage, **env)
    out, error = process.communicate(timeout=60)
    return process.returncode, out.split(), error


def warmed(checkout):
    assert say(checkout, "first") == (0, ["first", "None", str(checkout), "False"], "")
    deadline = time.monotonic() + 60
    while say(checkout, "next")[1][-1] != "True":  # torch was imported before it began
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_fork_takes_the_callers_place(checkout):
    warmed(checkout)
    code, words, error = say(checkout, "second", MARK="mine")
    assert (code, words, error) == (0, ["second", "mine", str(checkout), "True"], "")
    assert say(checkout, "fail")[0] == 3
    code, _, error = say(checkout, "crash")
    assert code == 1
    assert "on purpose" in error


def test_an_edit_of_the_code_counts_at_once(checkout):
    warmed(checkout)
    assert say(checkout, "second")[0] == 0
    (checkout / "flows/launch/runner.py").write_text("def run(stage):\n    return 42\n")
    assert say(checkout, "second")[0] == 42


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_stage(checkout, number):
    warmed(checkout)
    caller = start(checkout, "sleep")
    assert "sleep" in caller.stdout.readline()
    (stage,) = [p for p in psutil.process_iter() if is_stage(p)]
    caller.send_signal(number)
    caller.wait(timeout=10)
    assert caller.returncode != 0
    psutil.wait_procs([stage], timeout=10)
    assert not stage.is_running()
    caller.stdout.close()
    caller.stderr.close()


def serves(process):
    """Whether it is this test's warm process or a fork of it."""
    try:
        return process is not None and os.environ["FMCORE_PIPELINE"] in process.cmdline()
    except psutil.Error:
        return False


def is_stage(process):
    return serves(process) and serves(process.parent())


def test_it_ends_with_the_pipeline(checkout):
    warmed(checkout)
    mine = [p for p in psutil.process_iter() if serves(p)]
    assert len(mine) == 1
    pid = int(os.environ["FMCORE_PIPELINE"].split("-")[0])
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(mine, timeout=10)
    assert not alive
    assert not (warm._folder() / os.environ["FMCORE_PIPELINE"]).exists()


def test_sockets_of_the_dead_are_swept_and_no_others(checkout):
    folder = warm._folder()
    (folder / "99999999-1.25").touch()
    mine = f"{os.getpid()}-{psutil.Process().create_time():.2f}"
    for name in (mine, "not-a-socket"):
        (folder / name).touch()
    warm._sweep(folder)
    left = {path.name for path in folder.iterdir()}
    assert "99999999-1.25" not in left
    assert {mine, "not-a-socket"} <= left
    for name in (mine, "not-a-socket"):
        (folder / name).unlink()


def test_a_folder_others_can_enter_is_refused(checkout):
    warm._folder().chmod(0o755)
    with pytest.raises(PermissionError, match="open to others"):
        warm._folder()
