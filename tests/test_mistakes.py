"""What users do to the pipeline while it runs or before: edits, mistakes, data that is broken."""

import subprocess
import sys
import time

import pytest

from checkouts import Checkout, environment
from fmcore.models.folder import load_model
from servers import client_of, running_server, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A checkout in which all has run that the base needs."""
    checkout = Checkout(tmp_path_factory.mktemp("begun"), "smoke")
    checkout.repro("intake")
    return checkout


def test_an_edit_while_a_stage_runs_is_not_recorded_as_what_made_it(begun, tmp_path):
    checkout = Checkout.copied(begun, tmp_path / "copy")
    process = subprocess.Popen(
        ["dvc", "repro", "base"],
        cwd=checkout.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list((checkout.folder / "work/base").glob("*/")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    checkout.edit("base.train.lr", 0.003)
    checkout.edit("base.train.images", 20_000)  # the run that counts need not be long
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "params.yaml changed while base ran" in error
    again = checkout.repro("base")
    assert "base" in again.ran
    assert load_model(checkout.folder / "models/base").manifest["params"]["base"]["train"]["lr"] == 0.003


@pytest.mark.filterwarnings("ignore::DeprecationWarning:prefect", "ignore::DeprecationWarning:pydantic")
def test_the_parent_flow_nests_every_stage_and_then_finds_them_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "client"))
    (tmp_path / "server").mkdir()
    with running_server(tmp_path / "server") as server:
        checkout = Checkout(tmp_path / "checkout", "smoke", postman=True)
        checkout.edit("reflow.rounds", {"r1": {"teacher": "base", "couple": {}, "train": {}}})
        for wanted in (("couple", "evaluate_base"), ("base",)):  # a group and a single one, which need all sorts
            checkout.run(sys.executable, "-m", "flows.pipeline", *wanted, PREFECT_API_URL=server.address)
        made = {"check", "intake", "features", "base", "couple@r1", "evaluate_base"}
        with client_of(server.address) as client:

            def completed():
                runs = {run.name: run for run in client.read_flow_runs(limit=100) if run.state.is_completed()}
                return runs if set(runs) >= made else None

            runs = wait_until(completed)  # the postman may still be on its way
            tasks = client.read_task_runs(limit=200)
            pictures = [a.key for a in client.read_artifacts() if a.key and "samples" in a.key]
        parents = {task.id: task.name for task in tasks}
        assert {name: parents[runs[name].parent_task_run_id] for name in made} == {name: name for name in made}
        assert {task.name for task in tasks if task.state_name == "Cached"} == {"check", "intake", "base"}
        assert pictures


MISTAKES = {
    "unknown key": ({"base.train.lerning_rate": 1.0}, ["check"], "base.train.lerning_rate: unknown key"),
    "out of range": ({"couple.pairs": -1}, ["check"], "couple.pairs: expected pairs >= 1"),
    "missing data": (
        {
            "data": {"name": "mnist", "root": "nowhere", "download": False, "held_out": 0.0},
            "features.extractor": "classifier",
        },
        ["check", "look"],
        "data.root: no file or folder 'nowhere'",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_stops_before_anything_runs(begun, tmp_path, case):
    changes, ran, expected = MISTAKES[case]
    checkout = Checkout.copied(begun, tmp_path / "copy")
    for path, value in changes.items():
        checkout.edit(path, value)
    outcome = checkout.repro(check=False)
    assert outcome.code != 0
    assert outcome.ran == ran
    assert expected in outcome.text
    assert "Traceback" not in outcome.text


def test_a_loss_that_diverges_stops_with_one_line(begun, tmp_path):
    checkout = Checkout.copied(begun, tmp_path / "copy")
    checkout.edit("base.train.lr", 10.0)
    checkout.edit("base.train.weight_decay", 100.0)  # each step makes weights a thousand times as large
    outcome = checkout.repro("base", check=False)
    assert outcome.code != 0
    assert "expected finite numbers" in outcome.text
    assert "Traceback" not in outcome.text
    assert not (checkout.folder / "models/base").exists()


def test_a_broken_image_is_named(tmp_path):
    checkout = Checkout(tmp_path, "images")
    folder = checkout.folder / "data/images"
    folder.mkdir(parents=True)
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    outcome = checkout.repro(check=False)
    assert outcome.code != 0
    assert "broken.png" in outcome.text
    assert "Traceback" not in outcome.text
