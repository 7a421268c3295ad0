"""Where a thing comes from: each name of it leads to the same chain, and the chain to commands that work."""

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.events import Metrics, ModelReady
from flows.params.files import PRESETS, load_yaml
from flows.watch import journal
from flows.where import __main__ as where
from flows.where import chain, checkout, finding
from mlflow_records import drain, make_root, query
from repository import ROOT
from small_pipelines import dvc, git

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of DVC's own

GRAPH = """
stages:
  intake: {cmd: mkdir dataset && echo 1 > dataset/data.txt, outs: [dataset]}
  reflow:
    foreach: [r1]
    do:
      cmd: python make.py
      deps: [dataset]
      outs: ["models/${item}", "curves/${item}.csv"]
"""
MAKE = f"""
import json, os
os.makedirs("models/r1"), os.makedirs("curves", exist_ok=True)
open("curves/r1.csv", "w").write("1")
open("models/r1/model.safetensors", "w").write("weights")
json.dump({{"shape": [2]}}, open("models/r1/config.json", "w"))
json.dump({{"stage": "reflow@r1", "sha256": "{"5a" * 32}"}}, open("models/r1/manifest.json", "w"))
"""
SHA = "5a" * 32
STAGE_RUN, PIPELINE_RUN = (f"01919191-9191-9191-9191-00000000000{digit}" for digit in "12")
PAGE = "http://127.0.0.1:9/runs/flow-run"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout in which DVC ran a stage, MLflow was told, and Prefect had told its run before."""
    with pytest.MonkeyPatch.context() as patch:
        root = make_root(tmp_path_factory.mktemp("project"), patch)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        (root / PRESETS).symlink_to(ROOT / PRESETS)
        (root / "dvc.yaml").write_text(GRAPH)
        (root / "make.py").write_text(MAKE)
        (root / ".gitignore").write_text("work\nmlflow.db*\nmlartifacts\npresets\n")
        git(root, "init", "-q")
        dvc(root, "init", "-q")
        dvc(root, "repro", "-q")
        git(root, "add", "-A")
        git(root, "commit", "-qm", "one")
        commit = git(root, "rev-parse", "HEAD").strip()
        _tell(root, commit, "no")
        patch.chdir(root)
        lock = checkout.Checkout(root).outs
        run, pipeline = (
            query(root, f"select run_uuid from tags where key = 'fmcore.kind' and value = '{kind}'")[0][0]
            for kind in ("model", "pipeline")
        )
        yield SimpleNamespace(root=root, commit=commit, lock=lock, run=run, pipeline=pipeline)


def _tell(root, commit, dirty):
    """Plays the stage, and what comes of its journal."""
    params = load_yaml(ROOT / PRESETS / "digits.yaml")
    params["couple"]["nfe"] = 7
    tags = {"fmcore.data": "digits", "fmcore.params": "0a1b2c3d4e5f", "fmcore.dirty": dirty}
    tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": "main"}
    with journal.open_journal(
        root, stage="reflow@r1", params=params, tags=tags, model="r1", models=("r1",)
    ) as run:
        run(Metrics(1, {"training/loss": 0.5}))
        run(ModelReady("r1", root / "models/r1"))
    (folder,) = journal.journal_folders(root)
    links = [{"prefect.flow_run_id": i, "prefect.flow_run_url": f"{PAGE}/{i}"} for i in (STAGE_RUN, PIPELINE_RUN)]
    journal.write_state(folder, "prefect", {"tags": links[0], "above": links[1], "done": True, "linked": True})
    later = folder.stat().st_mtime + 60  # DVC writes it after the stage
    os.utime(root / "dvc.lock", (later, later))
    drain(root)


@pytest.fixture
def asked(made, capsys):
    """What is printed of a thing: its lines by name, and the commands."""

    def ask(thing):
        assert where.main([str(thing)]) == 0
        return read(capsys.readouterr().out)

    return ask


def read(text):
    chain, _, again = text.partition("again:\n")
    title, *lines = chain.splitlines()
    found, name = {}, ""
    for line in lines:
        named = re.fullmatch(r"  (?:(\w+):)? +(\S.*)", line)
        name = named[1] or name
        found.setdefault(name, []).append(named[2])
    return SimpleNamespace(title=title, lines=found, again=[line.strip() for line in again.splitlines()])


def test_a_model_is_followed_from_the_data_to_the_registry(made, asked):
    found = asked("models/r1/model.safetensors")
    dataset, model = made.lock["dataset"].md5, made.lock["models/r1"].md5
    assert re.fullmatch(r"[0-9a-f]{32}\.dir", model)
    assert found.lines == {
        "data": [f"digits, dataset {dataset}"],
        "code": [f"commit {made.commit} (main), nothing uncommitted"],
        "params": ["digest 0a1b2c3d4e5f, preset digits but for couple.nfe=7"],
        "stage": [found.lines["stage"][0]],
        "artifact": [f"models/r1, md5 {model}; in it model.safetensors"],
        "MLflow": [
            f"r1 / couple.nfe=7 / digits 1, run {made.run}",
            f"digits 1 / couple.nfe=7 (pipeline), run {made.pipeline}",
        ],
        "Prefect": [
            f"reflow@r1, run {STAGE_RUN}",
            f"{PAGE}/{STAGE_RUN}",
            f"pipeline, run {PIPELINE_RUN}",
            f"{PAGE}/{PIPELINE_RUN}",
        ],
        "version": [f"fmcore-digits/1 (r1), weights {SHA[:12]}"],
    }
    assert re.fullmatch(r"reflow@r1 \(finished, begun \d{4}-\d\d-\d\d \d\d:\d\d UTC\)", found.lines["stage"][0])


def names(made):
    """What the model may be called, besides by its path."""
    md5 = made.lock["models/r1"].md5
    return [md5, md5[:10], SHA, SHA[:12], "fmcore-digits/1", "models:/fmcore-digits/1", "fmcore-digits@best"]


@pytest.mark.parametrize("which", range(7))
def test_each_name_of_a_model_leads_to_the_same_chain(made, asked, which):
    if which == 6:
        from mlflow import MlflowClient

        MlflowClient().set_registered_model_alias("fmcore-digits", "best", "1")
    assert asked(names(made)[which]).lines | asked("models/r1").lines == asked("models/r1").lines


def test_runs_lead_to_what_they_made(made, asked):
    """A model's run, its stage's run in Prefect, and those of the pipeline."""
    both = {f"models/r1, md5 {made.lock['models/r1'].md5}", f"curves/r1.csv, md5 {made.lock['curves/r1.csv'].md5}"}
    for thing in (made.run, STAGE_RUN, made.pipeline, PIPELINE_RUN):
        found = asked(thing)
        assert set(found.lines["artifact"]) == both
        assert any(made.run in line for line in found.lines["MLflow"]) or thing in (made.pipeline, PIPELINE_RUN)
        assert f"pipeline, run {PIPELINE_RUN}" in found.lines["Prefect"]
        assert found.lines["version"][0].startswith("fmcore-digits/1 ")
    assert asked(made.pipeline).lines["stage"] == ["all of the pipeline"]


def test_what_no_run_made_says_so(made, asked):
    found = asked("dataset/data.txt")
    assert found.lines["MLflow"] == ["no run has this digest"]
    assert found.lines["code"] == [f"dvc.lock has this digest since commit {made.commit}; no run says more"]
    assert found.lines["artifact"] == [f"dataset, md5 {made.lock['dataset'].md5}; in it data.txt"]
    assert found.again == [
        "dvc repro intake  # what DVC's cache has is taken from there",
        "dvc checkout dataset  # its bytes, from DVC's cache",
    ]


def test_a_file_that_was_changed_since_is_told(made, asked):
    weights, other = made.root / "models/r1/model.safetensors", made.root / "models/r1/config.json"
    before = weights.read_bytes()
    weights.unlink()  # it may be a link into the cache
    try:
        assert asked(weights).lines["artifact"][0].endswith("; in it model.safetensors (DELETED here since)")
        weights.write_bytes(b"others")
        assert asked(weights).lines["artifact"][0].endswith("; in it model.safetensors (MODIFIED here since)")
        assert asked("models/r1").lines["artifact"][0].endswith(" (MODIFIED here since)")
        assert asked(other).lines["artifact"][0].endswith("; in it config.json")
    finally:
        weights.write_bytes(before)


def test_the_commands_make_it_again(made, asked, tmp_path):
    """In a clone without outputs, with the same cache: the same bytes."""
    (made.root / "make.py").write_text(MAKE + "\n")
    git(made.root, "commit", "-qam", "two")
    try:
        found = asked("models/r1")
    finally:
        git(made.root, "reset", "-q", "--hard", made.commit)
    assert [line.partition("  #")[0] for line in found.again] == [
        f"git checkout {made.commit}",
        "dvc repro reflow@r1",
        "dvc checkout models/r1",
    ]
    clone = tmp_path / "clone"
    git(made.root, "clone", "-q", str(made.root), str(clone))
    dvc(clone, "cache", "dir", "--local", str(made.root / ".dvc/cache"))
    for line in found.again:
        program, *arguments = shlex.split(line, comments=True)
        {"git": git, "dvc": dvc}[program](clone, *arguments)
    assert (clone / "models/r1/model.safetensors").read_text() == "weights"
    assert checkout.Checkout(clone).outs == made.lock


@pytest.mark.parametrize(
    ("thing", "looked"),
    [
        ("models/r9", "an output among the 3 of dvc.lock"),
        ("fmcore-digits/9", "a version in MLflow's registry"),
        ("deadbeef" * 4, "an MLflow run"),
        ("lucky-newt", "a DVC experiment (there is none)"),
        ("01919191-9191-9191-9191-000000000009", "an MLflow run that names this run of Prefect's"),
        ("o'hara", "an output among the 3 of dvc.lock"),
    ],
)
def test_what_is_unknown_is_one_line_that_says_what_was_looked_for(made, capsys, thing, looked):
    assert where.main([thing]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{thing}: unknown; looked for ")
    assert looked in line


@pytest.mark.parametrize(
    ("thing", "out"),
    [
        ("models/r1/nope", "models/r1"),
        ("models/r1/nope/model.safetensors", "models/r1"),
        ("dataset/data", "dataset"),
        ("curves/r1.csv/nope", "curves/r1.csv"),
    ],
)
def test_a_file_that_an_output_does_not_have_is_told(made, capsys, thing, out):
    assert where.main([thing]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{thing}: no such file in the output {out}, neither here nor in DVC's cache"


def test_an_output_of_another_folder_is_found_from_within_one(made, asked, monkeypatch):
    monkeypatch.chdir(made.root / "dataset")
    assert asked("models/r1").lines["artifact"] == [f"models/r1, md5 {made.lock['models/r1'].md5}"]


def test_files_of_an_output_that_lies_nowhere_may_be_in_it(made, tmp_path):
    elsewhere = checkout.Checkout(tmp_path)
    elsewhere.files = lambda md5: {}
    out = made.lock["models/r1"]
    assert finding._is_in(elsewhere, out, Path(out.path, "model.safetensors"))
    elsewhere.files = lambda md5: {"a/b": "1"}
    inside = [finding._is_in(elsewhere, out, Path(out.path, name)) for name in ("a", "a/b", "b", "a/b/c")]
    assert inside == [True, True, False, False]


@pytest.mark.parametrize("thing", ["models:/", "models:/fmcore-digits", "models:/fmcore-digits/one"])
def test_a_version_without_a_number_is_told_how_to_be_named(made, capsys, thing):
    assert where.main([thing]) == 1
    assert capsys.readouterr().err == f"{thing}: expected models:/NAME/NUMBER or models:/NAME@ALIAS\n"


def test_a_file_that_no_stage_made_is_told_apart(made, capsys):
    assert where.main(["make.py"]) == 1
    assert "make.py: no output of a stage; dvc.lock has curves/r1.csv, dataset, " in capsys.readouterr().err


def test_without_a_database_the_rest_is_told(made, tmp_path):
    """Also from a folder below, and without torch, which takes seconds."""
    copy = tmp_path / "copy"
    shutil.copytree(made.root, copy, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    code = "import sys; from flows.where.__main__ import main; main(['r1.csv']); print('torch' in sys.modules)"
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=copy / "curves", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, torch = done.stdout.splitlines()
    assert torch == "False"
    found = read("\n".join(lines))
    assert found.lines["MLflow"] == ["no run yet: there is no mlflow.db"]
    assert found.lines["artifact"] == [f"curves/r1.csv, md5 {made.lock['curves/r1.csv'].md5}"]
    assert not (copy / "mlflow.db").exists()


def test_parameters_that_no_commit_has_are_given_again(made):
    tags = {
        "fmcore.preset": "digits",
        "fmcore.differs": "couple.nfe=7\nbase.path=x\nno seed",
        "fmcore.dirty": "params.yaml",
    }
    tags |= {"mlflow.source.git.commit": made.commit}
    params = {"couple.nfe": "7", "base.path": "it's", "seed": "0"}
    pipeline = SimpleNamespace(data=SimpleNamespace(tags=tags, params=params))
    found = chain.Found((made.lock["models/r1"],), pipeline=pipeline)
    commit, again, _ = chain.commands(checkout.Checkout(made.root), found)
    assert commit == (f"git checkout {made.commit}", "lacks what was not committed: params.yaml")
    assert shlex.split(again[0]) == [
        *("python", "-m", "flows.pipeline", "reflow@r1", "--preset", "digits"),
        *("--set", "couple.nfe=7", "--set", "base.path=it's"),
    ]
    assert again[1] == "the parameters were not committed; no seed"


@pytest.mark.parametrize("module", [chain, checkout])
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_a_torn_lock_tells_nothing(made):
    text = (made.root / "dvc.lock").read_text()
    assert set(checkout.locked(text)) == {"dataset", "models/r1", "curves/r1.csv"}
    for cut in range(0, len(text), 7):
        assert set(checkout.locked(text[:cut])) <= set(checkout.locked(text)) | {"models/r", "curves/r1.cs"}
    assert json.dumps(checkout.locked("[1]")) == "{}"
