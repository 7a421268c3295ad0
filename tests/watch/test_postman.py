"""The journal and its postman against a real MLflow: everything arrives, once, whatever dies when."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table
from flows.local import process
from flows.watch import journal, postman, to_mlflow
from repository import ROOT
from servers import free_port

ENDED_PIPELINE = "4194304-1000000000.00"  # above the kernel's largest pid
FID_AT_NFE = {1: 90.0, 2: 40.5, 4: 20.0, 8: 12.25, 16: 9.0, 32: 8.5}
PARAMS = {"train": {"seed": 0, "rates": [1, 2]}, "note": "x" * 7000, "each@r1": None}
TAGS = {"fmcore.data": "digits"}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """An initialised database; creating one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = f"from mlflow import MlflowClient as C; C('sqlite:///{path}').search_experiments()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | to_mlflow.SETTINGS, check=True)
    return path


@pytest.fixture
def root(tmp_path, empty_database, monkeypatch):
    """A repository whose pipeline has ended; postmen are started by hand."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", *to_mlflow.SETTINGS):
        monkeypatch.setenv(name, "")  # so that what a Store sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(process.PIPELINE, ENDED_PIPELINE)
    monkeypatch.setattr(journal, "start_postman", lambda root: None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def record_stage(root, stage="distill", status="FINISHED", points=200):
    """Plays a stage that yields every kind of event; returns the bytes of its model."""
    work = root / "outs"
    model = work / "student"
    model.mkdir(parents=True, exist_ok=True)
    weights = os.urandom(5000)
    (model / "model.safetensors").write_bytes(weights)
    (model / "config.json").write_text("{}")
    run = journal.open_journal(root, stage=stage, params=PARAMS, tags=TAGS)
    run(Progress("train", 0, points))
    for step in range(points):
        run(Metrics(step * 64, {"loss": 1 / (step + 1), "rate": 1e-4}))
    run(Metrics(3, {"odd": float("nan")}))
    for nfe, fid in FID_AT_NFE.items():
        run(Metrics(nfe, {"fid_vs_nfe": fid}))
    for text in (b"old", b"new"):
        (work / "samples.png").write_bytes(text)
        run(Picture("samples-nfe-004", work / "samples.png"))
    run(Table("scores", [{"nfe": 1, "fid": 90.0}, {"nfe": 2, "fid": 40.5}]))
    run(Note("first"))
    run(Note("second"))
    run(ModelReady("student", model))
    shutil.rmtree(work)
    run.close(status)
    return weights


def ship_once(root, **env):
    command = [sys.executable, "-m", "flows.watch.postman", str(root), "--once"]
    return subprocess.run(command, env=os.environ | env, cwd=root, capture_output=True, text=True)


def drain(root):
    """As the postman does, for MLflow alone; returns what the last look found."""
    rounds = postman.Rounds(root, to_mlflow.MlflowBox(root))
    while (outcome := rounds.look(leaving=True)).waiting and not outcome.problems:
        time.sleep(0.05)
    postman.sweep(root)
    assert not outcome.problems
    return outcome


def query(root, sql):
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        return database.execute(sql).fetchall()


def stored(root):
    """Everything in the store that must exist once, without ids and times."""
    return {
        "runs": sorted(query(root, "select name, status from runs")),
        "metrics": sorted(map(str, query(root, "select key, step, value, is_nan from metrics"))),
        "params": sorted(query(root, "select key, value from params")),
        "models": query(root, "select name, status from logged_models"),
        "versions": sorted(query(root, "select name, version from model_versions")),
        "files": sorted(path.name for path in (root / "mlartifacts").rglob("*") if path.is_file()),
    }


def tags(root, run_name):
    sql = f"select key, value from tags join runs using (run_uuid) where name like '{run_name}'"
    return dict(query(root, sql))


def records_of(folder):
    return journal.read_journal(folder, "nobody").fresh


def left_over(root):
    return [path for path in journal.journals(root).iterdir() if path.name != ".lock"]


def test_everything_arrives(root):
    weights = record_stage(root)
    commands = (["init", "-q"], ["add", "-f", "mlflow.db"], ["commit", "-qm", "x"])
    for words in commands:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *words], cwd=root, check=True)
    done = ship_once(root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left_over(root) == []

    assert [status for _, status in stored(root)["runs"]] == ["FINISHED", "FINISHED"]
    assert stored(root)["runs"][1][0].startswith("pipeline 2001-09-0")
    child, parent = tags(root, "distill"), tags(root, "pipeline%")
    (parent_id,) = query(root, "select run_uuid from runs where name like 'pipeline%'")[0]
    assert parent["fmcore.pipeline"] == ENDED_PIPELINE
    assert child["mlflow.parentRunId"] == parent_id
    assert child["dvc.stage"] == "distill"
    assert child["fmcore.data"] == "digits"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    assert child["mlflow.source.git.commit"] == head.stdout.strip()

    params = dict(stored(root)["params"])
    assert params == {"train.seed": "0", "train.rates": "[1, 2]", "note": "x" * 6000, "each_r1": "None"}
    curve = query(root, "select step, value from metrics where key = 'fid_vs_nfe' order by step")
    assert dict(curve) == FID_AT_NFE
    assert query(root, "select count(*) from metrics where key = 'loss'") == [(200,)]
    assert query(root, "select step, is_nan from metrics where key = 'odd'") == [(3, 1)]

    (artifacts,) = query(root, "select artifact_uri from runs where name = 'distill'")[0]
    artifacts = Path(artifacts.removeprefix("file://"))
    assert artifacts.is_relative_to(root / "mlartifacts")
    assert (artifacts / "pictures/samples-nfe-004.png").read_bytes() == b"new"
    assert (artifacts / "tables/scores.csv").read_text() == "nfe,fid\n1,90.0\n2,40.5\n"
    assert [line.split()[1] for line in (artifacts / "log.txt").read_text().splitlines()] == ["first", "second"]

    code = "import sys, mlflow; print(mlflow.artifacts.download_artifacts('models:/digits-student/1'))"
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
    for seconds in (0.3, 1.3, 1.6, 1.8, 2.0, 2.2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
    ship_once(root)
    result = stored(root)
    assert len(result["metrics"]) == 400 + 1 + len(FID_AT_NFE)
    assert result["versions"] == [("digits-student", 1)]
    assert result["models"] == [("student", 2)]
    assert [status for _, status in result["runs"]] == ["FINISHED", "FINISHED"]
    assert left_over(root) == []


@contextmanager
def server(root, port):
    """A real MLflow server, killed with its workers at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
    command += ["--artifacts-destination", str(root / "mlartifacts")]
    env = os.environ | to_mlflow.SETTINGS | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
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
        record_stage(root, stage="late")
    assert ship_once(root, MLFLOW_TRACKING_URI=uri).returncode == 1
    with server(root, port):
        assert ship_once(root, MLFLOW_TRACKING_URI=uri).returncode == 0
    result = stored(root)
    assert len(result["metrics"]) == 2 * (400 + 1 + len(FID_AT_NFE))
    assert result["versions"] == [("digits-student", 1), ("digits-student", 2)]
    assert [name for name, _ in result["runs"]][:2] == ["distill", "late"]
    assert len(result["runs"]) == 3
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
        started = time.monotonic()
        assert ship_once(root).returncode == 0
        assert time.monotonic() - started < 1
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
    assert len(stored(root)["metrics"]) == 4 + 1 + len(FID_AT_NFE)
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
    assert "the journal of distill is dropped" in caplog.text


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


def test_killed_stage_is_closed(root):
    code = f"""
import sys, time
from pathlib import Path
from flows.watch import journal
from flows.events import Metrics
journal.start_postman = lambda root: None
run = journal.open_journal(Path({str(root)!r}), stage="base", params={{}}, tags={{}})
run(Metrics(1, {{"loss": 1.0}}))
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout.readline() == "ready\n"
        assert drain(root).live
        assert {status for _, status in stored(root)["runs"]} == {"RUNNING"}
        stage.send_signal(signal.SIGKILL)
    drain(root)
    assert [status for _, status in stored(root)["runs"]] == ["KILLED", "FAILED"]
    assert left_over(root) == []


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


def test_parent_follows_its_children(root, monkeypatch):
    """It runs while children come, fails with them, and recovers with a stage's second attempt."""

    def statuses():
        return [status for _, status in stored(root)["runs"]]

    with pytest.raises(RuntimeError), journal.open_journal(root, stage="a", params={}, tags={}):
        raise RuntimeError
    drain(root)
    assert statuses() == ["FAILED", "FAILED"]
    with journal.open_journal(root, stage="a", params={}, tags={}):
        drain(root)
        assert statuses() == ["FAILED", "RUNNING", "RUNNING"]
    drain(root)
    assert statuses() == ["FAILED", "FINISHED", "FINISHED"]
    monkeypatch.setenv(process.PIPELINE, "2-1000000000")
    with journal.open_journal(root, stage="z", params={}, tags={}):
        pass
    drain(root)
    assert len(query(root, "select distinct value from tags where key = 'mlflow.parentRunId'")) == 2


def test_parent_waits_for_its_pipeline(root, monkeypatch):
    monkeypatch.delenv(process.PIPELINE)
    monkeypatch.setattr(to_mlflow.MlflowBox, "pause_seconds", 0.05)
    with journal.open_journal(root, stage="a", params={}, tags={}):
        pass
    box = to_mlflow.MlflowBox(root)
    assert not box.tick(leaving=False).problems
    assert [status for _, status in stored(root)["runs"]] == ["FINISHED", "RUNNING"]
    monkeypatch.setattr(postman, "LINGER_SECONDS", 0.1)
    postman.stay(root, [box])
    assert [status for _, status in stored(root)["runs"]] == ["FINISHED", "FINISHED"]
    assert left_over(root) == []


def test_digests_of_dvc(root, monkeypatch):
    monkeypatch.delenv(process.PIPELINE)  # this process is the pipeline, and alive
    (root / "dvc.yaml").write_text("stages: {}\n")
    entry = {
        "deps": [{"path": "data", "md5": f"{'d' * 32}.dir"}, {"path": "fmcore/a.py", "md5": "a" * 32}],
        "outs": [{"path": "models/r1", "md5": f"{'1' * 32}.dir"}, {"path": "scores/r1.json", "md5": "2" * 32}],
    }
    lock = root / "dvc.lock"
    stale = {**entry, "outs": [{"path": "models/r1", "md5": "stale"}]}
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"reflow@r1": stale}}))
    os.utime(lock, (1, 1))
    for stage in ("reflow@r1", "other"):
        with journal.open_journal(root, stage=stage, params={}, tags={}):
            pass
    box = to_mlflow.MlflowBox(root)
    assert box.tick(leaving=True).waiting
    assert not any(key.startswith("dvc.out") for key in tags(root, "reflow@r1"))
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"reflow@r1": entry}}))
    assert box.tick(leaving=True).waiting, "DVC may still be writing it"
    monkeypatch.setattr(to_mlflow, "STILL_SECONDS", 0)
    assert box.tick(leaving=True).waiting  # for `other`
    digests = {key: value for key, value in tags(root, "reflow@r1").items() if key.startswith("dvc.")}
    assert digests == {
        "dvc.stage": "reflow@r1",
        "dvc.dep.data": f"{'d' * 32}.dir",
        "dvc.out.models/r1": f"{'1' * 32}.dir",
        "dvc.out.scores/r1.json": "2" * 32,
    }
    monkeypatch.setattr(to_mlflow, "DIGEST_SECONDS", 0)
    drain(root)
    assert left_over(root) == []


def test_a_stage_starts_its_postman(tmp_path, empty_database, monkeypatch):
    """The postman works behind the stage's back and holds none of the stage's pipes."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
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
    deadline = time.monotonic() + 20
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(stored(tmp_path)["runs"]) == 2
    assert [status for _, status in stored(tmp_path)["runs"]] == ["FINISHED", "FINISHED"]


def test_pipeline_is_the_dvc_above(tmp_path, monkeypatch):
    """Two stage processes under one process called dvc share a key; others do not."""
    monkeypatch.delenv(process.PIPELINE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = tmp_path / "dvc"
    program.write_text(
        "import subprocess, sys, os\n"
        "print(os.getpid(), flush=True)\n"
        "code = 'from flows.local import process as t; print(t.pipeline_key(), t.pipeline_started())'\n"
        "for _ in range(2): subprocess.run(f'{sys.executable} -c \"{code}\"; true', shell=True, check=True)\n"
    )
    out = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    pid, first, second = out.stdout.splitlines()
    assert first == second
    assert first.startswith(f"{pid}-")
    assert abs(float(first.split()[1]) - time.time()) < 60
    assert process.pipeline_key().startswith(f"{os.getpid()}-")
    monkeypatch.setenv(process.PIPELINE, "nightly")
    assert process.pipeline_key() == "nightly"


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
