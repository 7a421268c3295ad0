"""A stage's journal, its way to MLflow, and what MLflow's database holds in the end."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from PIL import Image

from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table, Tag, samples_at, scored, trained
from flows.local import process, tracking
from flows.watch import database, journal, postman, to_mlflow
from repository import ROOT

ENDED_PIPELINE = "4194304-1000000000.00"  # above the kernel's largest pid
MODELS = ("base", "r1", "r2", "student")
FID_AT_NFE = {1: 90.0, 2: 40.5, 4: 20.0, 8: 12.25, 16: 9.0, 32: 8.5}
PARAMS = {"data": {"name": "digits"}, "train": {"seed": 0, "rates": [1, 2]}, "note": "x" * 7000, "each@r1": None}
TAGS = {"fmcore.data": "digits"}


def record_stage(root, stage="distill@student", status="FINISHED", points=200, model="student"):
    """Plays a stage that yields every kind of event; returns the bytes of its model."""
    work = root / "outs"
    folder = work / "student"
    folder.mkdir(parents=True, exist_ok=True)
    weights = os.urandom(5000)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps({"shape": [2]}))
    decided = {model: {"train": {"lr": 1e-3}}} if model else {}
    about = {"params": PARAMS, "tags": TAGS, "model": model, "models": MODELS, "by_model": decided}
    run = journal.open_journal(root, stage=stage, **about)
    run(Progress("train", 0, points))
    for step in range(points):
        run(Metrics(step * 64, {"training/loss": 1 / (step + 1), "cost/rate": 1e-4}))
    run(Metrics(3, {"odd": float("nan")}))
    for nfe, fid in FID_AT_NFE.items():
        run(scored("fid", fid, nfe=nfe, solver="euler"))
    for shade in (0, 255):
        Image.new("L", (8, 8), shade).save(work / "samples.png")
        run(samples_at(4, work / "samples.png"))
    run(Table("scores", [{"nfe": 1, "fid": 90.0}, {"nfe": 2, "fid": 40.5}]))
    run(Note("first"))
    run(Note("second"))
    run(ModelReady("student", folder))
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


def make_root(folder, monkeypatch):
    """A repository whose pipeline has ended, with an empty database; postmen are started by hand."""
    database.make(folder, os.environ | tracking.SETTINGS)
    (folder / "work").rmdir()  # nothing has run yet
    for name in ("MLFLOW_TRACKING_URI", *tracking.SETTINGS):
        monkeypatch.setenv(name, "")  # so that what a Store sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(process.PIPELINE, ENDED_PIPELINE)
    monkeypatch.setattr(journal, "start_postman", lambda root: None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return folder


NFES = (1, 2, 4, 16)


def distance(model, nfe):
    """What the models of `play_pipeline` score: the first needs many steps, the last none."""
    place = MODELS.index(model)
    return 0.3 + 0.1 * place + 70 / (1 + 20 * place) / nfe


def play_stage(root, stage, model="", events=(), *, data="digits", params=None, status="FINISHED"):
    """Plays a stage of a pipeline; `events` are what it yields."""
    params = params or {"data": {"name": data}, "couple": {"nfe": 16}}
    tags = {"fmcore.data": data, "fmcore.checkout": str(root)}
    told = MODELS if stage == "report" else [model] if model else []
    about = {"params": params, "tags": tags, "model": model, "models": MODELS}
    about["by_model"] = {name: {"train": {"lr": 1e-3}} for name in told}
    run = journal.open_journal(root, stage=stage, **about)
    for event in events:
        run(event)
    run.close(status)


def scores_of(model, data="digits", of=""):
    """The scores that `evaluate` tells of a model, and the report again."""
    metric = "fd_cnn64" if data == "digits" else "sliced_wasserstein"
    for nfe in NFES:
        yield scored(metric, distance(model, nfe), nfe=nfe, solver="euler", of=of)
    yield scored(metric, distance(model, 16) / 2, nfe=16, solver="ab2", of=of)
    yield scored("straightness", 0.1 / (1 + MODELS.index(model)), nfe=16, solver="euler", of=of)


def play_pipeline(root, started, *, run=MODELS, data="digits", params=None):
    """Plays a pipeline that trained and scored the models `run`, all others being cached; its report knows all."""
    picture = root / "samples.png"
    Image.new("L", (64, 64), 128).save(picture)
    about = {"data": data, "params": params}
    before = os.environ.get(process.PIPELINE)
    os.environ[process.PIPELINE] = f"4194304-{started:.2f}"
    for model in run:
        curve = [trained(step, 1 / (1 + step), 1.0, 1e-3) for step in (64, 128, 192)]
        kind = {"base": "base", "student": "distill@student"}.get(model, f"reflow@{model}")
        play_stage(root, kind, model, curve, **about)
    for model in run:
        kind = {"base": "evaluate_base", "student": "evaluate_student@student"}.get(model, f"evaluate@{model}")
        told = [*scores_of(model, data), samples_at(1, picture), samples_at(4, picture)]
        play_stage(root, kind, model, told, **about)
    report = [event for model in MODELS for event in scores_of(model, data, of=model)]
    report += [trained(step, 1 / (1 + step), 1.0, 1e-3, of=model) for model in MODELS for step in (64, 128, 192)]
    report += [samples_at(nfe, picture, of=model) for model in MODELS for nfe in (1, 4)]
    report += [Metrics(0, {f"at {n}/{m}": distance(m, n)}) for m in MODELS for n in (1, 4)]
    report += [Metrics(0, {"at 1/best of all": distance("student", 1)}), Tag("best-at-1", "student")]
    report += [Picture("curves", picture), Tag("verdict", "Another round pays. Or so.")]
    play_stage(root, "report", "", report, **about)
    os.environ.pop(process.PIPELINE)
    if before is not None:
        os.environ[process.PIPELINE] = before
