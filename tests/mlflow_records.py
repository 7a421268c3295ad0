"""A stage's journal, its way to MLflow, and what MLflow's database holds in the end."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table
from flows.local import process
from flows.watch import journal, postman, to_mlflow
from repository import ROOT

ENDED_PIPELINE = "4194304-1000000000.00"  # above the kernel's largest pid
FID_AT_NFE = {1: 90.0, 2: 40.5, 4: 20.0, 8: 12.25, 16: 9.0, 32: 8.5}
PARAMS = {"train": {"seed": 0, "rates": [1, 2]}, "note": "x" * 7000, "each@r1": None}
TAGS = {"fmcore.data": "digits"}


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


def make_database(folder):
    """An initialised database; creating one takes seconds."""
    path = folder / "mlflow.db"
    code = f"from mlflow import MlflowClient as C; C('sqlite:///{path}').search_experiments()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | to_mlflow.SETTINGS, check=True)
    return path


def make_root(folder, empty_database, monkeypatch):
    """A repository whose pipeline has ended; postmen are started by hand."""
    shutil.copyfile(empty_database, folder / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", *to_mlflow.SETTINGS):
        monkeypatch.setenv(name, "")  # so that what a Store sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(process.PIPELINE, ENDED_PIPELINE)
    monkeypatch.setattr(journal, "start_postman", lambda root: None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return folder
