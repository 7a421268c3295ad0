"""The postman against a real MLflow: everything arrives, once, whatever dies when."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from flows.local import tracking
from flows.watch import journal, pictures, postman, to_mlflow
from mlflow_records import (
    ENDED_PIPELINE,
    FID_AT_NFE,
    drain,
    left_over,
    make_root,
    query,
    record_stage,
    ship_once,
    stored,
    tags,
)
from repository import ROOT
from servers import free_port, wait_until


@pytest.fixture
def root(tmp_path, monkeypatch):
    return make_root(tmp_path, monkeypatch)


def test_everything_arrives(root):
    weights = record_stage(root)
    done = ship_once(root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left_over(root) == []

    assert [status for _, status in stored(root)["runs"]] == ["FINISHED", "FINISHED"]
    assert [name for name, _ in stored(root)["runs"]] == ["digits 1", "student / digits 1"]
    child, parent = tags(root, "student %"), tags(root, "digits %")
    (parent_id,) = query(root, "select run_uuid from runs where name like 'digits %'")[0]
    assert parent["fmcore.pipeline"] == ENDED_PIPELINE
    assert child["mlflow.parentRunId"] == parent_id
    assert child["fmcore.stage.distill_student"].startswith("FINISHED ")
    assert child["fmcore.data"] == parent["fmcore.data"] == "digits"

    params = {
        name: query(root, f"select key, value from params join runs using (run_uuid) where name = '{name}'")
        for name in ("digits 1", "student / digits 1")
    }
    assert dict(params["digits 1"]) == {
        "data.name": "digits",
        "train.seed": "0",
        "train.rates": "[1, 2]",
        "note": "x" * 6000,
        "each_r1": "None",
    }
    assert dict(params["student / digits 1"]) == {"train.lr": "0.001"}
    curve = query(root, "select step, value from metrics where key = 'quality/fid' order by step")
    assert dict(curve) == FID_AT_NFE
    assert query(root, "select count(*) from metrics where key = 'training/loss'") == [(200,)]
    assert query(root, "select step, is_nan from metrics where key = 'odd'") == [(3, 1)]

    (artifacts,) = query(root, "select artifact_uri from runs where name = 'student / digits 1'")[0]
    artifacts = Path(artifacts.removeprefix("file://"))
    assert artifacts.is_relative_to(root / "mlartifacts")
    assert pictures.keys_of(path.name for path in (artifacts / "images").iterdir()) == {"samples/4 NFE"}
    (new,) = (artifacts / "images").glob("*.png")
    with Image.open(new) as picture:
        assert picture.getpixel((0, 0)) == 255
    assert (artifacts / "tables/scores.csv").read_text() == "nfe,fid\n1,90.0\n2,40.5\n"
    lines = (artifacts / "logs/distill_student/log.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["first", "second"]

    code = (
        "import sys, mlflow; print(mlflow.artifacts.download_artifacts('models:/fmcore-digits/1/artifacts/model'))"
    )
    uri = f"sqlite:///{root}/mlflow.db"
    got = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
    )
    model = Path(got.stdout.strip())
    assert (model / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]
    assert not (root / "mlruns").exists()


class Killed(BaseException):
    """Ends a postman as abruptly as a signal does."""


class Fragile:
    """A client that dies after its `lives`-th call; with None it only counts."""

    def __init__(self, client, lives):
        self.client, self.lives, self.calls = client, lives, 0

    def __getattr__(self, name):
        def call(*args, **options):
            answer = getattr(self.client, name)(*args, **options)
            self.calls += 1
            if self.calls == self.lives:
                raise Killed
            return answer

        return call


@pytest.mark.slow
def test_killed_after_any_call(root):
    """A postman that dies after its k-th call, for all k, and a second one that does the rest."""
    base = root / "whole"

    def prepared(name):
        path = root / name
        path.mkdir()
        shutil.copyfile(root / "mlflow.db", path / "mlflow.db")
        shutil.copytree(base / "work", path / "work")
        return path

    def ship(path, lives):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}/mlflow.db"
        box = to_mlflow.MlflowBox(path)
        box.store.client = Fragile(box.store.client, lives)
        assert not postman.once(path, [box])
        return box.store.client.calls

    base.mkdir()
    record_stage(base, points=3)
    whole = prepared("never")
    calls = ship(whole, None)
    expected = stored(whole)
    assert calls > 15
    for lives in range(1, calls + 1):
        path = prepared(f"killed-{lives}")
        with pytest.raises(Killed):
            ship(path, lives)
        ship(path, None)
        assert stored(path) == expected, lives
        assert left_over(path) == []


@pytest.mark.slow
def test_killed_by_signal(root):
    record_stage(root)
    command = [sys.executable, "-m", "flows.watch.postman", str(root)]
    for table in ("runs", "metrics", "model_versions"):  # as soon as it holds something
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda of=table: query(root, f"select 1 from {of} limit 1"), 120)
            process.send_signal(signal.SIGKILL)
    ship_once(root)
    result = stored(root)
    assert len(result["metrics"]) == 400 + 2 + len(FID_AT_NFE)
    assert result["versions"] == [("fmcore-digits", 1)]
    assert result["models"] == [("student", 2)]
    assert [status for _, status in result["runs"]] == ["FINISHED", "FINISHED"]
    assert left_over(root) == []


@contextmanager
def server(root, port):
    """A real MLflow server, killed with its workers at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
    command += ["--artifacts-destination", str(root / "mlartifacts")]
    env = os.environ | tracking.SETTINGS | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=root, env=env, start_new_session=True, **output) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_dead_server_loses_nothing(root):
    port = free_port()
    uri = f"http://me:secret@127.0.0.1:{port}"
    weights = record_stage(root)
    dead = ship_once(root, MLFLOW_TRACKING_URI=uri)
    assert dead.returncode == 1
    assert dead.stderr.startswith("journals are kept, not sent to MLflow: MlflowException")
    assert len(dead.stderr.splitlines()) == 1
    assert "secret" not in dead.stderr
    with server(root, port):
        assert ship_once(root, MLFLOW_TRACKING_URI=uri).returncode == 0
        record_stage(root, stage="late", model="late")
    assert ship_once(root, MLFLOW_TRACKING_URI=uri).returncode == 1
    with server(root, port):
        assert ship_once(root, MLFLOW_TRACKING_URI=uri).returncode == 0
    result = stored(root)
    assert len(result["metrics"]) == 2 * (400 + 2 + len(FID_AT_NFE))
    assert result["versions"] == [("fmcore-digits", 1), ("fmcore-digits", 2)]
    assert [name for name, _ in result["runs"]] == ["digits 1", "late / digits 1", "student / digits 1"]
    assert weights in {path.read_bytes() for path in (root / "mlartifacts").rglob("*.safetensors")}
    assert left_over(root) == []


def test_unusable_server_is_given_up(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(postman, "LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(to_mlflow.MlflowBox, "pause_seconds", 0.01)
    monkeypatch.setattr(postman, "GIVE_UP_SECONDS", 0.2)
    record_stage(root, points=1)
    (rounds,) = postman.stay(root, [to_mlflow.MlflowBox(root)])
    assert len(rounds.outcome.problems) == 1
    assert len(left_over(root)) == 1


def test_a_second_postman_leaves_at_once(root):
    record_stage(root, points=1)
    command = [sys.executable, "-m", "flows.watch.postman", str(root)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        while not journal.is_locked(journal.lock_of_postman(root)):
            time.sleep(0.01)
        assert ship_once(root).returncode == 0
        assert left_over(root), "the first is still at it"
        deadline = time.monotonic() + 20
        while left_over(root) and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    assert len(stored(root)["runs"]) == 2


def test_torn_last_line_is_ignored(root):
    record_stage(root, points=2)
    (folder,) = journal.journal_folders(root)
    with (folder / journal.RECORDS).open("ab") as file:
        file.write(b'{"kind": "metrics", "st')
    drain(root)
    assert len(stored(root)["metrics"]) == 4 + 2 + len(FID_AT_NFE)
    assert left_over(root) == []


def test_void_journal_is_discarded(root):
    """A power loss leaves a folder whose records never reached the disk."""
    for name, content in (
        ("none", None),
        ("empty", b""),
        ("torn", b'{"kind": "sta'),
        ("zeros", bytes(50) + b"\n"),
    ):
        folder = journal.journals(root) / name
        folder.mkdir(parents=True)
        if content is not None:
            (folder / journal.RECORDS).write_bytes(content)
    record_stage(root, points=2)
    whole = next(path for path in journal.journal_folders(root) if len(path.name) == 32)
    with (whole / journal.RECORDS).open("ab") as file:
        file.write(bytes(20) + b"\n")
    (whole / "mlflow.json").touch()
    drain(root)
    assert [status for _, status in stored(root)["runs"]] == ["FINISHED", "FINISHED"]
    assert left_over(root) == []


def test_what_nobody_takes_is_dropped_in_the_end(root, caplog):
    """MLflow has had it, Prefect has not: the models go at once, the rest after two weeks, and with a word."""
    record_stage(root, points=1)
    (folder,) = journal.journal_folders(root)
    records = folder / journal.RECORDS
    records.write_bytes(records.read_bytes().replace(b'"api": null', b'"api": "http://127.0.0.1:9/api"', 1))
    assert (folder / journal.MODELS).exists()
    drain(root)
    assert not (folder / journal.MODELS).exists()
    assert journal.journal_folders(root) == [folder]
    os.utime(records, (time.time() - postman.KEEP_SECONDS - 1,) * 2)
    postman.sweep(root)
    assert left_over(root) == []
    assert "the journal of distill@student is dropped" in caplog.text


def test_a_stage_starts_its_postman(tmp_path, monkeypatch):
    """The postman works behind the stage's back and holds none of the stage's pipes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = f"""
import sys, time
from pathlib import Path
from flows.watch import journal
from flows.events import Metrics
started = time.perf_counter()
with journal.open_journal(Path({str(tmp_path)!r}), stage="base", params={{}}, tags={{}}) as run:
    opened = time.perf_counter()
    run(Metrics(1, {{"loss": 1.0}}))
assert not {{"mlflow", "torch", "numpy"}} & set(sys.modules)
print(opened - started)
"""
    started = time.monotonic()
    stage = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5
    assert float(stage.stdout) < 0.25
    deadline = time.monotonic() + 60
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [status for _, status in stored(tmp_path)["runs"]] == ["FINISHED"]
