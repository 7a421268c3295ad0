"""The whole graph through real `dvc repro` on a tiny preset, and kills of it."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import pytest
from dvc.repo import Repo

from checkouts import Checkout, environment
from fmcore.disk.pairs import open_pairs
from fmcore.models.folder import load_model
from repository import ROOT
from servers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("made"), "smoke", postman=True)
    checkout.first = checkout.repro()
    return checkout


ALL = {
    "check",
    "intake",
    "features",
    "base",
    "couple@r1",
    "reflow@r1",
    "couple@r2",
    "reflow@r2",
    "distill@student",
    "evaluate_base",
    "evaluate@r1",
    "evaluate@r2",
    "evaluate_student@student",
    "evaluate_pairs@r1",
    "evaluate_pairs@r2",
    "report",
}


def test_everything_runs_and_then_nothing(made):
    assert set(made.first.ran) == ALL | {"look"}
    assert made.repro().ran == ["look"], "it looks whether the data changed"


def test_outs_are_links_into_the_cache(made):
    for name in ("dataset/data.safetensors", "models/student/model.safetensors", "reports/index.html"):
        about = (made.folder / name).stat()
        assert about.st_nlink > 1, f"{name} is kept twice"
        assert about.st_mode & 0o222 == 0, f"{name} could be edited, and DVC's copy with it"


def test_reflow_straightens_and_helps_one_step(made):
    table = pd.read_csv(made.folder / "reports/scores.csv").set_index(["model", "metric", "solver", "nfe"]).value
    straight = table.xs("straightness", level="metric").droplevel(["solver", "nfe"])
    assert straight["r1"] <= straight["base"] / 10
    one = table.xs(("sliced_wasserstein", "euler", 1), level=("metric", "solver", "nfe"))
    assert one["r1"] <= one["base"] / 5
    assert one["student"] <= one["base"] / 5


def test_scores_are_tidy(made):
    table = pd.read_csv(made.folder / "reports/scores.csv")
    columns = "model,round,solver,grid,nfe,metric,value,std,spread,repeats,n_samples,n_reference"
    assert list(table.columns) == [*columns.split(","), "extractor", "extractor_sha256", "seed"]
    rounds = {"base": 0, "r1": 1, "r2": 2, "student": 1, "couplings-r1": 1, "couplings-r2": 2}
    assert dict(zip(table.model, table["round"], strict=True)) == rounds
    assert list(table.model.unique()) == list(rounds)
    assert not table.duplicated(["model", "solver", "nfe", "metric"]).any()
    assert (table.value[table.metric != "energy_distance"] >= 0).all()  # unbiased, so it can fall below 0
    heun = table[(table.solver == "heun") & ~table.model.str.startswith("couplings")]
    assert (heun.nfe % 2 == 1).all()
    assert set(table[table.model == "student"].nfe) == {1, 3, 4, 16}, "it is a flow, of any number of steps"


def test_report_shows_what_was_made(made):
    reports = made.folder / "reports"
    page = (reports / "index.html").read_text()
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', page))
    assert "sliced Wasserstein" in page
    assert "Whether another reflow round after r2 pays cannot be told" in page
    for path in reports.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path


def test_dvc_commands_say_something(made):
    shown = made.run("dvc", "metrics", "show", "--json").stdout
    metrics = json.loads(shown)[""]["data"]["reports/metrics.json"]["data"]
    assert metrics["sliced_wasserstein"]["base"]["nfe_001"] > metrics["sliced_wasserstein"]["r1"]["nfe_001"]
    assert set(metrics["straightness"]) == {"base", "r1", "r2", "student"}
    plots = json.loads(made.run("dvc", "plots", "show", "--json", "-o", "plots").stdout)
    assert not plots.get("errors"), plots["errors"]
    assert {"quality", "training", "reports/samples.png", "reports/curves.png"} <= set(plots["data"])
    text = json.dumps(plots)
    for name in ("base", "r1", "r2", "student"):
        assert f'"model": "{name}"' in text
    assert '"type": "log", "base": 2' in text.replace("\\", "")


def verdict_is_told(folder):
    """The last that a pipeline tells."""
    with sqlite3.connect(folder / "mlflow.db") as base, suppress(sqlite3.OperationalError):  # it is being made
        return base.execute("select 1 from tags where key = 'fmcore.verdict'").fetchone()


def test_mlflow_holds_every_model_and_number_once(made):
    """The report tells all numbers again, of models that had nothing to do too; they must not be there twice."""

    def told():
        # A postman that is at it already may leave before the end; then this one is let in.
        made.run(sys.executable, "-m", "flows.watch.postman", str(made.folder), "--once", check=False)
        return verdict_is_told(made.folder)

    wait_until(told, seconds=300)
    with sqlite3.connect(made.folder / "mlflow.db") as base:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in base.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        (pipeline,) = (run for run, about in tags.items() if about["fmcore.kind"] == "pipeline")
        models = {about["fmcore.model"]: run for run, about in tags.items() if about["fmcore.kind"] == "model"}
        assert set(models) == {"base", "r1", "r2", "student"}
        assert {tags[run]["mlflow.parentRunId"] for run in models.values()} == {pipeline}
        told = [key for about in tags.values() for key in about if key.startswith("fmcore.stage.")]
        assert sorted(key.removeprefix("fmcore.stage.") for key in told) == sorted(
            stage.replace("@", "_") for stage in ALL
        )
        query = "select step from metrics where run_uuid = ? and key = ? order by step"
        for run in models.values():
            steps = base.execute(query, (run, "quality/sliced_wasserstein")).fetchall()
            assert steps == [(1,), (4,), (16,)]
        assert any(key.startswith("dvc.dep.models/r1") for key in tags[models["r1"]])
        assert tags[pipeline]["fmcore.verdict"].startswith(
            "Whether another reflow round after r2 pays cannot be told"
        )
        losses = base.execute(query, (models["base"], "training/loss")).fetchall()
        assert len(losses) == len(pd.read_csv(made.folder / "curves/base.csv"))
        twice = (
            "select key from metrics where key not like 'cost/%' group by run_uuid, key, step having count(*) > 1"
        )
        assert base.execute(twice).fetchall() == []


def test_the_command_line_uses_the_result(made):
    args = ("sample", "models/student", "--nfe", "1", "--count", "64", "--out", "grid.png")
    made.run(sys.executable, "-m", "fmcore", *args)
    assert (made.folder / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("reflow.rounds.r2.train", {"lr": 0.0005}, {"check", "reflow@r2"}),
        ("distill.train.lr", 0.0007, {"check", "distill@student"}),
        ("couple.dtype", "float32", set()),
        ("reflow.rounds.r2.couple", {"nfe": 8}, {"check", "couple@r2", "evaluate_pairs@r2"}),
    ],
)
def test_an_edit_reruns_what_depends_on_it(made, path, value, expected):
    """`dvc status` names the stages whose own inputs changed; the rest follows from their outputs."""
    before = (made.folder / "params.yaml").read_bytes()
    try:
        made.edit(path, value)
        with Repo(str(made.folder)) as repo:
            status = repo.status()
        # DVC puts the path of a dvc.yaml that is not in the current folder before a stage's name.
        edited = {name for name, changes in status.items() if "params.yaml" in json.dumps(changes)}
        direct = {name.rpartition(":")[2] for name in edited}
        assert direct - {"report"} == expected
    finally:
        (made.folder / "params.yaml").write_bytes(before)


def test_a_round_more_is_an_edit_of_params(made):
    before = (made.folder / "params.yaml").read_bytes()
    try:
        made.edit("reflow.rounds.r3", {"teacher": "r2", "couple": {}, "train": {}})
        with Repo(str(made.folder)) as repo:
            listed = {stage.addressing.rpartition(":")[2] for stage in repo.index.stages}
        assert {"couple@r3", "reflow@r3", "evaluate@r3"} <= listed
    finally:
        (made.folder / "params.yaml").write_bytes(before)


def kill_when(checkout: Checkout, stage: str, ready) -> str:
    """Starts a stage, and kills it with everything around it (SIGKILL) as soon as `ready()`; returns its words."""
    log = checkout.folder / "killed.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["dvc", "repro", stage],
            cwd=checkout.folder,
            env=environment(),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the stage was over before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return log.read_text()


def quick_to_save(checkout):
    """Checkpoints every ten seconds are right for hours of training; this one takes five."""
    source = checkout.folder / "flows/stages/training.py"
    text = source.read_text().replace("CHECKPOINT_AT_MOST = 10.0, 0.02,", "CHECKPOINT_AT_MOST = 0.3, 1.0,")
    assert text != source.read_text()
    source.write_text(text)


def edit(checkout, file):
    source = checkout.folder / file
    source.write_text(source.read_text() + "\n# edited\n")


GOING_ON = "going on from step"


def test_a_killed_training_goes_on_to_the_same_bytes_unless_its_code_changed(made, tmp_path):
    checkout = Checkout.copied(made, tmp_path / "copy")
    work = checkout.folder / "work" / "base"
    quick_to_save(checkout)  # an edit, so the base is trained again

    def checkpoints():
        return set(work.glob("*/step-*.safetensors"))

    def killed():
        """Trains until a checkpoint more is there."""
        before = checkpoints()
        return kill_when(checkout, "base", lambda: checkpoints() - before)

    def edit_others():
        for file in ("fmcore/ode/solvers.py", "flows/stages/couple.py", "flows/report/page.html"):
            edit(checkout, file)  # which the base does not depend on

    assert GOING_ON not in killed()
    (old,) = {path.parent for path in checkpoints()}
    edit(checkout, "fmcore/flow/training.py")
    assert GOING_ON not in killed(), "its code changed"
    edit_others()
    assert GOING_ON in killed()
    edit_others()
    done = checkout.repro("base")
    assert GOING_ON in done.text
    expected = {k: v for k, v in made.outputs().items() if k.startswith(("models/base", "curves/base"))}
    assert {k: checkout.outputs()[k] for k in expected} == expected
    assert [path for path in work.iterdir() if path.is_dir()] == [old]


def test_killed_couplings_go_on_to_the_same_bytes(made, tmp_path):
    checkout = Checkout.copied(made, tmp_path / "copy")
    checkout.edit("couple.pairs", 12000)
    source = checkout.folder / "flows/stages/shards.py"
    source.write_text(source.read_text().replace("SHARD_BYTES = 16 * 2**20", "SHARD_BYTES = 32 * 2**10"))
    work = checkout.folder / "work" / "couple-r1"
    kill_when(checkout, "couple@r1", lambda: len(list(work.glob("*/pairs/pairs-*.safetensors"))) >= 2)
    (newest,) = [path for path in work.iterdir() if path.is_dir()]
    part = sorted(newest.glob("pairs/pairs-*.safetensors"))[-1]
    part.write_bytes(part.read_bytes()[:-100])  # as a crash of the machine may leave it
    done = checkout.repro("couple@r1")
    assert re.search(r"\d+ of 12000 pairs are there already", done.text)
    pairs, manifest = open_pairs(checkout.folder / "couplings/r1")
    assert len(pairs.x0) == 12000
    assert len(manifest["shards"]) > 3
    first, _ = open_pairs(made.folder / "couplings/r1")
    assert (pairs.x0[:4000] == first.x0).all()
    assert (pairs.x1[:4000] == first.x1).all()


def test_models_say_what_made_them(made):
    r1, student = load_model(made.folder / "models/r1"), load_model(made.folder / "models/student")
    _, couplings = open_pairs(made.folder / "couplings/r1")
    base = load_model(made.folder / "models/base")
    assert couplings["teacher"] == {"model": "base", "sha256": base.digest, "ema": None}
    assert r1.manifest["couplings"]["teacher"]["sha256"] == base.digest
    assert student.k is None
    assert student.manifest["matched"]["base"] == base.digest
    assert student.manifest["init"] == {"model": "r1", "sha256": r1.digest}
    texts = [p.read_text() for p in made.folder.glob("models/*/manifest.json")]
    assert not any(re.search(r"20\d\d-\d\d-\d\d|/tmp|hostname", text) for text in texts)


def test_all_stages_in_one_process_in_another_checkout_make_the_same_bytes(made, tmp_path):
    """For a machine without DVC, Prefect and MLflow; and no byte depends on the process or the folder."""
    alone = Checkout(tmp_path, "smoke")
    said = alone.run(sys.executable, str(ROOT / "scripts/run_stages.py"), PYTHONPATH=str(alone.folder)).stdout
    assert set(json.loads(said.splitlines()[0])["seconds"]) == ALL | {"look"}
    assert alone.outputs() == made.outputs()
    waiting = alone.run(sys.executable, str(ROOT / "scripts/run_stages.py"), "--seconds", "0", check=False)
    assert waiting.returncode == 1


def test_who_clones_and_pulls_has_all_results_and_computes_nothing(made, tmp_path):
    """By way of a folder as DVC's remote."""
    mine = Checkout.copied(made, tmp_path / "mine")
    mine.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    mine.run("git", "add", "--all")
    mine.run("git", "-c", "user.name=me", "-c", "user.email=me@localhost", "commit", "-q", "-m", "Results")
    mine.run("dvc", "push", "-q")
    mine.run("git", "clone", "-q", str(mine.folder), str(tmp_path / "theirs"))
    theirs = Checkout.at(tmp_path / "theirs")
    assert not theirs.outputs()
    theirs.run("dvc", "pull", "-q")
    assert theirs.outputs() == made.outputs()
    load_model(theirs.folder / "models/student")
    assert theirs.repro().ran == ["look"]
