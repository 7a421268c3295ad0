"""Kills at random moments of a whole pipeline: run to its end at last, it has made the bytes of one never killed.

`make faults` alone does this: 20 kills in each of `FMCORE_FAULTS` pipelines, at moments of `FMCORE_FAULTS_SEED`.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress

import psutil
import pytest

from checkouts import Checkout, environment
from flows.watch.journal import read_state
from servers import PYTHON, wait_until

TIMES = int(os.environ.get("FMCORE_FAULTS", "0"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not TIMES, reason="make faults kills; it takes an hour")]
SEED = int(os.environ.get("FMCORE_FAULTS_SEED", "0"))
KILLS = 20
LONGEST = 10.0  # seconds until a kill
VICTIMS = ("all", "all", "dvc", "stage", "any of them", "fork server", "postman")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDS = 400  # seconds for what is left


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a pipeline makes that is left alone."""
    checkout = Checkout(tmp_path_factory.mktemp("whole"), "smoke")
    short(checkout)
    checkout.repro()
    return checkout.outputs()


def short(checkout):
    """One round, so that few seconds are for starting stages."""
    checkout.edit("reflow.rounds", {"r1": {"teacher": "base", "couple": {}, "train": {}}})


def words(process):
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def below(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def in_folder(folder):
    """Every process whose place is the checkout, the postman among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder):
                found.append(process)
    return found


def victims(who, dvc, folder):
    match who:
        case "dvc":
            return [psutil.Process(dvc.pid)]
        case "stage":
            return [process for process in below(dvc.pid) if "flows.launch" in words(process)]
        case "any of them":
            return below(dvc.pid)
        case "fork server":
            return [process for process in in_folder(folder) if "forkserver" in words(process)]
        case "postman":
            return [process for process in in_folder(folder) if "flows.watch.postman" in words(process)]
    return in_folder(folder)


def killed_once(checkout, dice):
    """Starts the pipeline and kills one or all of its processes; how many, None if it ended before."""
    with (checkout.folder / "killed.log").open("ab") as log:
        dvc = subprocess.Popen(
            ["dvc", "repro"],
            cwd=checkout.folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        seconds, who, number = dice.uniform(0.5, LONGEST), dice.choice(VICTIMS), dice.choice(SIGNALS)
        with suppress(subprocess.TimeoutExpired):
            if dvc.wait(seconds) == 0:
                return None
            # `make repro` mends what a kill has torn, and runs DVC again.
            assert not checkout.run(PYTHON, "-m", "flows.local.lockfile", check=False).returncode, (
                "it failed alone"
            )
            return 0
        hit = []
        with suppress(psutil.NoSuchProcess):
            hit = victims(who, dvc, checkout.folder)
        if hit and who in ("any of them", "stage"):
            hit = [dice.choice(hit)]
        for process in hit:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            dvc.wait(dice.uniform(0.1, 5))  # who lost the postman or the fork server, and not itself, goes on
        for process in [*below(dvc.pid), *([psutil.Process(dvc.pid)] if dvc.poll() is None else [])]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        dvc.wait()
    print(f"{who} by {signal.Signals(number).name} after {seconds:.1f} s: {len(hit)} hit", flush=True)
    return len(hit)


def ended(checkout, whole):
    """Runs what is left, mending dvc.lock as `make repro` does, and compares all that was made."""
    for _ in range(3):
        done = checkout.run("dvc", "repro", check=False)
        if done.returncode == 0:
            break
        checkout.run(PYTHON, "-m", "flows.local.lockfile", check=False)
    assert done.returncode == 0, f"stuck: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    found = checkout.outputs()
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if found[name] != whole[name]] == []


def begun_anew(checkout):
    """Everything that was made is gone, so that the pipeline runs from its start; journals stay."""
    made = ("dataset", "features", "models", "couplings", "curves", "scores", "reports", ".dvc/cache", ".dvc/tmp")
    for name in made:
        shutil.rmtree(checkout.folder / name, ignore_errors=True)
    (checkout.folder / "dvc.lock").unlink(missing_ok=True)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(max(1, TIMES)))
def test_killed_again_and_again_it_ends_in_the_same_bytes(whole, tmp_path, number):
    dice = random.Random(f"{SEED}/{number}")
    checkout = Checkout(tmp_path / "killed", "smoke", postman=True)
    short(checkout)
    kills = processes = pipelines = 0
    try:
        while kills < KILLS:
            hit = killed_once(checkout, dice)
            if hit is None:
                ended(checkout, whole)
                begun_anew(checkout)
                pipelines += 1
            elif hit:
                kills, processes = kills + 1, processes + hit
                if dice.random() < 0.7:  # else the next one comes while the last one's stage may live
                    time.sleep(dice.uniform(0, 3))
        ended(checkout, whole)
        told(checkout)
        print(f"{kills} kills of {processes} processes in {pipelines + 1} pipelines: nothing lost", flush=True)
    finally:
        for process in in_folder(checkout.folder):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def told(checkout):
    """All that happened is in MLflow's database, which is whole."""
    checkout.repro()  # wakes the postman, had it been killed last
    journals = checkout.folder / "work/journal"

    def is_told():
        left = [path for path in journals.iterdir() if path.is_dir() and path.name[0] != "."]
        return all(read_state(path, "mlflow").get("done") for path in left) and not running(checkout)

    wait_until(is_told, ENDS)  # a pipeline's run ends a little after its last stage's
    with closing(sqlite3.connect(checkout.folder / "mlflow.db")) as base:
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)


def running(checkout):
    with closing(sqlite3.connect(checkout.folder / "mlflow.db")) as base:
        return base.execute("select name from runs where status = 'RUNNING'").fetchall()
