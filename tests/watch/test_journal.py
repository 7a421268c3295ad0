"""The journal that a stage keeps: it costs nothing, tells no secrets, and its failures are not the stage's."""

import statistics
import subprocess
import sys
import time

import pytest

from flows.events import Metrics, ModelReady, Note, Picture
from flows.local import process
from flows.watch import journal
from mlflow_records import make_root, records_of


@pytest.fixture
def root(tmp_path, monkeypatch):
    return make_root(tmp_path, monkeypatch)


def test_lost_records_do_not_fail_the_stage(root, capsys):
    with journal.open_journal(root, stage="base", params={}, tags={}) as run:
        run(Picture("lost", root / "none.png"))
        run(ModelReady("lost", root / "none"))
        (run.folder / journal.LOG).mkdir()
        run(Note("lost"))
        (run.folder / journal.LOG).rmdir()
        run(Metrics(1, {"loss": 1.0}))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("Prefect and MLflow will lack something of this stage: ")
    assert "none.png" in said
    (folder,) = journal.journal_folders(root)
    assert [record.kind for record in records_of(folder)] == ["start", "metrics", "end"]


def test_full_disk_leaves_whole_records(root):
    """The disk has no room for the second half of a record, then some again; a limit on file size acts alike."""
    code = f"""
import os, resource, signal
from pathlib import Path
from flows.watch import journal
from flows.events import Metrics
journal.start_postman = lambda root: None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with journal.open_journal(Path({str(root)!r}), stage="base", params={{}}, tags={{}}) as run:
    run(Metrics(1, {{"loss": 1.0}}))
    size = (run.folder / journal.RECORDS).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    for step in (2, 3):
        run(Metrics(step, {{"loss": 1.0}}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run(Metrics(4, {{"loss": 1.0}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr == "Prefect and MLflow will lack something of this stage: [Errno 28] No space left on device\n"
    )
    (folder,) = journal.journal_folders(root)
    assert [record.of.get("step", record.kind) for record in records_of(folder)] == ["start", 1, 4, "end"]


def test_no_journal_does_not_fail_the_stage(root, capsys):
    (root / "work").write_text("a file where a folder is expected")
    with journal.open_journal(root, stage="base", params={}, tags={}) as run:
        run(Metrics(1, {"loss": 1.0}))
        run(Note("lost"))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("Prefect and MLflow will not show base: ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(130), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (ValueError(), "FAILED"),
    ],
)
def test_exception_closes_the_run(root, error, status):
    with pytest.raises(type(error)), journal.open_journal(root, stage="base", params={}, tags={}):
        raise error
    (folder,) = journal.journal_folders(root)
    assert journal.read_journal(folder, "mlflow").end["status"] == status


def test_append_is_cheap(root):
    run = journal.open_journal(root, stage="base", params={}, tags={})
    times = []
    for step in range(500):
        started = time.perf_counter()
        run(Metrics(step, {"loss": 0.5, "rate": 1e-4, "grad_norm": 1.5}))
        times.append(time.perf_counter() - started)
    run.close("FINISHED")
    assert statistics.median(times) < 1e-3


def test_passwords_are_redacted():
    assert process.redacted("at https://me:p@ss@host:5000/x?password=y z") == "at https://host:5000/x z"
    assert process.redacted("sqlite:////a/b.db") == "sqlite:////a/b.db"
