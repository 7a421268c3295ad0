"""What MLflow is told of while it is written: dvc.lock, and its own database, and kills meanwhile."""

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from flows.events import Metrics, Note
from flows.local.process import PIPELINE
from flows.watch import database, journal, waiting
from flows.watch.digests import dvc_digests
from repository import ROOT
from servers import PYTHON, wait_until

pytestmark = pytest.mark.slow


def test_a_dvc_lock_in_the_making_tells_no_digests(tmp_path):
    lock, digest = tmp_path / "dvc.lock", f"{'ab' * 16}.dir"
    assert dvc_digests(tmp_path, "base", since=0.0) is None
    whole = f"schema: '2.0'\nstages:\n  base:\n    outs:\n    - path: models/base\n      md5: {digest}\n"

    def found(text, seconds):
        lock.write_text(text)
        os.utime(lock, (time.time() - seconds,) * 2)
        return dvc_digests(tmp_path, "base", since=0.0)

    assert found(whole, 0) is None, "DVC may still be at it"
    assert dvc_digests(tmp_path, "base", since=0.0, over=True), "nobody is any more"
    assert found(whole, 2) == {"dvc.out.models/base": digest}
    for cut in range(len(whole) - 5):
        assert not found(whole[:cut], 2)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with one journal and no database."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(PIPELINE, "4194304-1000000000.00")  # a process that is gone
    monkeypatch.setattr(journal, "start_postman", lambda root: None)
    record(tmp_path)
    return tmp_path


def record(root):
    with journal.open_journal(root, stage="base", params={"seed": 0}, tags={}) as run:
        run(Metrics(1, {"loss": 0.5}))
        run(Note("at work"))


def ship(root):
    command = [PYTHON, "-m", "flows.watch.postman", str(root), "--once"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def losses(root):
    with closing(sqlite3.connect(root / database.NAME)) as base:
        return base.execute("select value from metrics where key = 'loss'").fetchall()


@pytest.mark.parametrize("alone", [False, True], ids=["with its maker", "alone"])
def test_a_kill_while_mlflows_database_is_made_loses_nothing(root, alone, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "caches"))  # none is kept, as on a new machine
    running = subprocess.Popen(
        [PYTHON, "-m", "flows.watch.postman", str(root)],
        cwd=root,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: list(root.glob(f"work/.{database.NAME}.*/{database.NAME}")), 240)  # it is nice
    time.sleep(0.1)  # some of its tables are there
    (os.kill if alone else os.killpg)(running.pid, signal.SIGKILL)
    running.wait()
    assert not (root / database.NAME).exists()
    done = ship(root)
    assert done.returncode == 0, done.stderr
    assert losses(root) == [(0.5,)]
    assert not list(root.glob(f"work/.{database.NAME}.*"))
    (kept,) = (root / "caches/fmcore").iterdir()
    with closing(sqlite3.connect(kept)) as base:
        assert base.execute("select count(*) from runs").fetchall() == [(0,)], "as it was before anything was told"


def test_it_is_made_once_for_all_checkouts_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    made = []

    def upgrade(command, **options):
        Path(command[-1].removeprefix("sqlite:///")).write_text("tables")
        made.append(command[2:5])

    monkeypatch.setattr(database.subprocess, "run", upgrade)
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        database.make(tmp_path / name, {})
        assert (tmp_path / name / database.NAME).read_text() == "tables"
        assert made == [["mlflow", "db", "upgrade"]]
    (kept,) = (tmp_path / "caches/fmcore").iterdir()
    (tmp_path / "third" / database.NAME).unlink()
    kept.chmod(0o666)  # so anyone may have written it
    database.make(tmp_path / "third", {})
    assert len(made) == 2


def test_a_broken_database_is_told_with_its_cure(root, capfd):
    with closing(sqlite3.connect(root / database.NAME)) as base:
        base.execute("create table jobs (id int)")  # as MLflow left it when it was killed on the way
        base.commit()
    assert ship(root).returncode == 1
    capfd.readouterr()
    record(root)
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("MLflow lacks the last records, which are kept: ")
    assert "already exists" in said
    assert said.endswith("; it is broken, and they go into a new one after: mv mlflow.db mlflow.db.broken")
    record(root)
    assert capfd.readouterr().err == "", "once a pipeline is enough"
    shutil.move(root / database.NAME, root / "mlflow.db.broken")
    assert ship(root).returncode == 0
    assert losses(root) == [(0.5,)], "three times the same point of one model's run"
    record(root)
    assert capfd.readouterr().err == ""


def test_what_cannot_be_kept_is_told_without_a_cure_that_does_not_fit(root):
    waiting.note(root, "mlflow", "ConnectionError: no answer")
    waiting.note(root, "prefect", "ConnectionError: nor here")
    mlflow, prefect = waiting.told(root, "a")
    assert mlflow == "MLflow lacks the last records, which are kept: ConnectionError: no answer"
    assert prefect == "Prefect lacks the last records, which are kept: ConnectionError: nor here"
    assert waiting.told(root, "a") == []
    waiting.note(root, "mlflow", "OperationalError: (sqlite3.OperationalError) database is locked")
    (line,) = waiting.told(root, "a")
    assert line.endswith("; end the process that holds it (fuser mlflow.db), or let this user write it")
    (root / "work" / "mlflow-waits.json").write_text("[")
    waiting.note(root, "prefect", None)
    assert waiting.told(root, "c") == []
    waiting.note(root, "mlflow", None)
    assert not list((root / "work").glob("*-waits.json"))
