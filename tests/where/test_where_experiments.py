"""A DVC experiment is followed as a whole, from its name, its files' digests and its run."""

import shutil
import subprocess
import sys

import pytest

from flows.local import tracking
from flows.watch.journal import journal_folders
from flows.where import __main__ as where
from flows.where.checkout import Checkout
from mlflow_records import query
from repository import ROOT
from servers import wait_until
from small_pipelines import dvc, git, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of DVC's own
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout in which another run writes dvc.lock, and an experiment beside it."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", *tracking.SETTINGS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    root = make(tmp_path / "project")
    monkeypatch.chdir(root)
    dvc(root, "repro", "-q")
    command = [sys.executable, "-m", "flows.pipeline", "--set", "seed=3", "--experiment", "three"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (root / "dvc.lock").touch()  # as a stage of the checkout that ends meanwhile would
    wait_until(lambda: shipped(root), 300)
    return root


def shipped(root):
    command = [sys.executable, "-m", "flows.watch.postman", str(root), "--once"]
    subprocess.run(command, cwd=root, check=False, capture_output=True)
    return (root / "mlflow.db").exists() and not journal_folders(root)


def test_an_experiment_and_what_it_made_lead_to_each_other(project, capsys):
    kept = Checkout(project).experiments["three"]
    md5 = Checkout(project).outs_at(kept.commit)["base.txt"].md5
    assert md5 != Checkout(project).outs["base.txt"].md5
    found = query(project, "select value from tags where key = 'dvc.out.base.txt' order by value")
    assert {value for (value,) in found} == {md5, Checkout(project).outs["base.txt"].md5}, (
        "each by its own dvc.lock"
    )

    def asked(thing):
        assert where.main([thing]) == 0
        return capsys.readouterr().out

    whole = asked("three")
    assert f"base.txt, md5 {md5}" in whole
    assert "stage:    all of the pipeline" in whole
    assert asked(md5).splitlines()[-2:] == [
        "  dvc exp apply three",
        "  dvc repro base  # what DVC's cache has is taken from there",
    ]
    commands = [line.strip().partition("  #")[0] for line in whole.partition("again:\n")[2].splitlines()]
    assert commands == ["dvc exp apply three", "dvc repro"]
    copy = shutil.copytree(project, project.with_name("copy"), ignore=shutil.ignore_patterns("work"))
    (copy / "work").mkdir()
    for command in commands:
        dvc(copy, *command.split()[1:])
    assert (copy / "base.txt").read_text() == "seed 3"
    assert git(copy, "rev-parse", "HEAD").strip() == kept.baseline

    dvc(project, "exp", "remove", "three")
    assert "python -m flows.pipeline --preset" not in asked("three"), "its parameters are not the whole preset's"
    assert "experiment three is removed" in asked("three")
