"""Runs in MLflow: how they end, to which pipeline they belong, and what DVC made of their outputs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.local import process
from flows.watch import digests, journal, pictures, postman, to_mlflow
from mlflow_records import (
    MODELS,
    NFES,
    distance,
    drain,
    left_over,
    make_root,
    play_pipeline,
    query,
    stored,
    tags,
)
from repository import ROOT


@pytest.fixture
def root(tmp_path, monkeypatch):
    return make_root(tmp_path, monkeypatch)


def open_journal(root, stage, model="m"):
    tags = {"fmcore.data": "digits"} if stage == "reflow@r1" else {}
    return journal.open_journal(root, stage=stage, params={"data": {"name": "x"}}, tags=tags, model=model)


def test_killed_stage_is_closed(root):
    code = f"""
import sys, time
from pathlib import Path
from flows.watch import journal
from flows.events import Metrics
journal.start_postman = lambda root: None
run = journal.open_journal(Path({str(root)!r}), stage="base", params={{}}, tags={{}}, model="base")
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
    assert [status for _, status in stored(root)["runs"]] == ["KILLED", "KILLED"], "its pipeline did not fail"
    assert left_over(root) == []


def test_parent_follows_its_children(root, monkeypatch):
    """It runs while children come, fails with them, and recovers with a stage's second attempt."""

    def statuses():
        return [status for _, status in stored(root)["runs"]]

    with pytest.raises(RuntimeError), open_journal(root, stage="a"):
        raise RuntimeError
    drain(root)
    assert statuses() == ["FAILED", "FAILED"]
    with open_journal(root, stage="a"):
        drain(root)
        assert statuses() == ["RUNNING", "RUNNING"]
    drain(root)
    assert statuses() == ["FINISHED", "FINISHED"]
    monkeypatch.setenv(process.PIPELINE, "2-1000000000")
    with open_journal(root, stage="z"):
        pass
    drain(root)
    assert len(query(root, "select distinct value from tags where key = 'mlflow.parentRunId'")) == 2
    assert [name for name, _ in stored(root)["runs"]] == [
        "m / pipeline 1",
        "m / pipeline 2",
        "pipeline 1",
        "pipeline 2",
    ]


def test_a_model_is_at_work_as_long_as_one_of_its_stages(root):
    """Stages of one model may run side by side; how each ended stays known."""

    def model():
        return dict(stored(root)["runs"])["m / pipeline 1"]

    first, second = open_journal(root, stage="train"), open_journal(root, stage="score")
    first.close("FINISHED")
    drain(root)
    assert model() == "RUNNING"
    second.close("KILLED")
    drain(root)
    assert model() == "KILLED"
    told = {key: value.split()[0] for key, value in tags(root, "m %").items() if key.startswith("fmcore.stage.")}
    assert told == {"fmcore.stage.train": "FINISHED", "fmcore.stage.score": "KILLED"}


def test_an_attempt_told_late_does_not_hide_the_one_after_it(root, monkeypatch):
    for status in ("FAILED", "FINISHED"):
        open_journal(root, stage="a").close(status)
    first, second = sorted(journal.journal_folders(root), key=lambda folder: journal.start_of(folder)["time"])
    monkeypatch.setattr(journal, "journal_folders", lambda root: [second])
    drain(root)
    monkeypatch.setattr(journal, "journal_folders", lambda root: [first])
    drain(root)
    assert dict(stored(root)["runs"]) == {"m / pipeline 1": "FINISHED", "pipeline 1": "FINISHED"}


def test_parent_waits_for_its_pipeline(root, monkeypatch):
    monkeypatch.delenv(process.PIPELINE)
    monkeypatch.setattr(to_mlflow.MlflowBox, "pause_seconds", 0.05)
    with open_journal(root, stage="a"):
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
        "deps": [{"path": "dataset", "md5": f"{'d' * 32}.dir"}, {"path": "fmcore/a.py", "md5": "a" * 32}],
        "outs": [{"path": "models/r1", "md5": f"{'1' * 32}.dir"}, {"path": "scores/r1.json", "md5": "2" * 32}],
    }
    lock = root / "dvc.lock"
    stale = {**entry, "outs": [{"path": "models/r1", "md5": "stale"}]}
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"reflow@r1": stale}}))
    os.utime(lock, (1, 1))
    for stage, model in (("reflow@r1", "r1"), ("other", "")):
        with open_journal(root, stage=stage, model=model):
            pass
    box = to_mlflow.MlflowBox(root)
    assert box.tick(leaving=True).waiting
    assert not any(key.startswith("dvc.out") for key in tags(root, "r1 %"))
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"reflow@r1": entry}}))
    assert box.tick(leaving=True).waiting, "DVC may still be writing it"
    monkeypatch.setattr(digests, "STILL_SECONDS", 0)
    assert box.tick(leaving=True).waiting  # for `other`
    found = {key: value for key, value in tags(root, "r1 %").items() if key.startswith("dvc.")}
    assert found == {
        "dvc.dep.dataset": f"{'d' * 32}.dir",
        "dvc.out.models/r1": f"{'1' * 32}.dir",
        "dvc.out.scores/r1.json": "2" * 32,
    }
    assert query(root, "select name, digest from datasets") == [("digits", f"{'d' * 32}.dir")]
    monkeypatch.setattr(to_mlflow, "DIGEST_SECONDS", 0)
    drain(root)
    assert left_over(root) == []


def test_cached_models_are_told_by_the_report_once(root):
    """A pipeline that trained one model shows all of them, and what two stages told of one is there once."""
    play_pipeline(root, 1_000_000_000, run=MODELS[-1:])
    drain(root)
    assert [name for name, _ in stored(root)["runs"]] == [
        "base / digits 1",
        "digits 1",
        *(f"{model} / digits 1" for model in MODELS[1:]),
    ]
    for model in MODELS:
        of_run = f"from metrics join runs using (run_uuid) where name = '{model} / digits 1'"
        curve = query(root, f"select step, value {of_run} and key = 'quality/fd_cnn64' order by step")
        assert curve == [(nfe, distance(model, nfe)) for nfe in NFES]
        assert query(root, f"select step {of_run} and key = 'training/loss' order by step") == [
            (64,),
            (128,),
            (192,),
        ]
        files = query(root, f"select artifact_uri from runs where name = '{model} / digits 1'")[0][0]
        names = [path.name for path in (Path(files.removeprefix("file://")) / "images").iterdir()]
        assert pictures.keys_of(names) == {"samples/1 NFE", "samples/4 NFE"}
        decided = f"select key, value from params join runs using (run_uuid) where name = '{model} / digits 1'"
        assert query(root, decided) == [("train.lr", "0.001")]
    assert query(root, "select key from metrics group by run_uuid, key, step having count(*) > 1") == []
    parent = tags(root, "digits 1")
    assert parent["fmcore.verdict"] == "Another round pays. Or so."
    assert parent["mlflow.note.content"].splitlines()[0] == "**Another round pays.**"
    assert "| student | 1.75 | 0.887 |" in parent["mlflow.note.content"]


def test_a_look_around_is_no_pipeline(root, monkeypatch):
    """A stage that always runs makes a run where something follows, or where it fails, else none."""
    for number, status, follows in ((1, "FINISHED", False), (2, "FAILED", False), (3, "FINISHED", True)):
        monkeypatch.setenv(process.PIPELINE, f"4194304-{number}000000000.00")
        journal.open_journal(root, stage="look", params={}, tags={}, always=True).close(status)
        if follows:
            open_journal(root, stage="train").close("FINISHED")
    drain(root)
    assert stored(root)["runs"] == [
        ("m / pipeline 2", "FINISHED"),
        ("pipeline 1", "FAILED"),
        ("pipeline 2", "FINISHED"),
    ]
    assert left_over(root) == []


def test_prefects_run_is_linked_when_it_is_known(root):
    """Prefect may be slower, and be done after the stage has ended and its run is closed."""
    open_journal(root, stage="train").close("FINISHED")
    (folder,) = journal.journal_folders(root)
    records = folder / journal.RECORDS
    records.write_bytes(records.read_bytes().replace(b'"api": null', b'"api": "http://127.0.0.1:9/api"', 1))
    drain(root)
    assert not any(key.startswith("prefect.") for key in tags(root, "m %"))
    page = "http://127.0.0.1:9/runs/flow-run/1"
    known = {"prefect.flow_run_id": "1", "prefect.flow_run_url": page}
    above = {"prefect.flow_run_id": "2", "prefect.flow_run_url": f"{page[:-1]}2"}
    journal.write_state(folder, "prefect", {"tags": known, "above": above, "done": True, "linked": True})
    drain(root)
    assert known.items() <= tags(root, "m %").items()
    assert above.items() <= tags(root, "pipeline 1").items(), "the run that the stage was a part of"
    assert f"In Prefect: [pipeline]({page[:-1]}2)." in tags(root, "pipeline 1")["mlflow.note.content"]
    assert tags(root, "m %")["mlflow.note.content"] == f"In Prefect: [train]({page})."
    assert stored(root)["runs"] == [("m / pipeline 1", "FINISHED"), ("pipeline 1", "FINISHED")]
    assert left_over(root) == []


def test_params_that_changed_meanwhile_stop_nothing(root):
    """A pipeline's parameters are those of its first stage; what a later one says differently is a tag."""
    for stage, lr in (("a", 1), ("b", 2)):
        journal.open_journal(root, stage=stage, params={"lr": lr, "seed": 0}, tags={}).close("FINISHED")
    drain(root)
    assert query(root, "select key, value from params order by key") == [("lr", "1"), ("seed", "0")]
    assert tags(root, "pipeline 1")["fmcore.params_changed"] == "lr=2"


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
