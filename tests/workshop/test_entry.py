"""What decides a stage: its entry in dvc.yaml, read as DVC reads it."""

import os
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.params import preset
from flows.params.reading import load_yaml, validate
from flows.workshop import entry as entries
from flows.workshop.entry import addresses, digest_of, entry_of, sources
from repository import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What DVC needs to read the graph: the code, dvc.yaml, .dvcignore."""
    root = tmp_path_factory.mktemp("entries")
    for name in ("flows", "fmcore"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    Repo.init(str(root), no_scm=True).close()
    return root


@pytest.mark.parametrize("name", PRESETS)
def test_entries_are_resolved_as_dvc_resolves_them(checkout, monkeypatch, name):
    (checkout / "params.yaml").write_bytes(preset.rendered(name))
    raw = load_yaml(checkout / "params.yaml")
    monkeypatch.chdir(checkout)  # DVC's addresses are relative to where one stands
    with Repo(str(checkout)) as repo:
        found = [stage for stage in repo.index.stages if stage.cmd]
        assert len(found) == 7 + 4 * len(raw["reflow"]["rounds"]) + 2 * len(raw["distill"]["students"])
        for stage in found:
            entry = entry_of(stage.addressing, raw)
            paths = {Path(dep.fs_path).relative_to(checkout) for dep in stage.deps if dep.protocol == "local"}
            files = {path for path in paths if not str(path).startswith(("flows/", "fmcore/", "params.yaml"))}
            assert set(entry.inputs) == files
            keys = [key for dep in stage.deps if hasattr(dep, "params") for key in dep.params]
            assert sorted(entry.params) == sorted(keys or [""])
            for dep in stage.deps:
                if hasattr(dep, "params") and dep.params:
                    read = dep.read_params()
                    assert {key: entry.params[key] for key in read} == read


def test_stages_come_after_what_they_read():
    raw = load_yaml(ROOT / "presets/digits.yaml")
    found = addresses(raw)
    assert len(found) == len(set(found)) == 17
    for before, after in (
        *(
            ("check", "look"),
            ("look", "intake"),
            ("intake", "features"),
            ("intake", "base"),
            ("base", "couple@r1"),
        ),
        *(("couple@r1", "reflow@r1"), ("reflow@r1", "couple@r2"), ("couple@r1", "distill@student")),
    ):
        assert found.index(before) < found.index(after)
    assert found[-1] == "report"


def test_only_sources_count_to_dvc_and_to_the_key(checkout):
    inside = checkout / "fmcore/flow"
    names = (".paths.py.swp", ".#paths.py", "paths.py~", "paths.pyc", "notes.txt", "__pycache__/paths.py")
    (inside / "__pycache__").mkdir()
    for name in names:
        (inside / name).write_text("x")
    with Repo(str(checkout)) as repo:
        seen = {Path(p).relative_to(checkout) for p in repo.dvcignore.find(repo.fs, str(checkout / "fmcore"))}
    mine = {file.relative_to(checkout) for file in sources(checkout / "fmcore")}
    assert mine == seen
    assert mine == {file.relative_to(ROOT) for file in sources(ROOT / "fmcore")}


@pytest.fixture
def copied(checkout, monkeypatch, tmp_path):
    """A copy of the code whose entries are looked at, and a folder with inputs."""
    root = tmp_path / "code"
    shutil.copytree(checkout, root)
    monkeypatch.setattr(entries, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    for name in ("dataset", "models/base", "features"):
        os.makedirs(name)
        Path(name, "manifest.json").write_text(name)
        Path(name, "more").write_text(name)
    Path("params.checked.json").write_text("{}")
    return root


def key(address="base", **changes):
    raw = load_yaml(ROOT / "presets/digits.yaml") | changes
    return digest_of(entry_of(address, validate(raw, "test").model_dump(mode="json")), Path.cwd())


def test_parameters_inputs_and_code_decide_the_key(copied):
    first = key()
    assert key() == first
    assert key(seed=1) != first
    assert key(evaluate=load_yaml(ROOT / "presets/smoke.yaml")["evaluate"] | EVALUATE) == first
    Path("dataset/x.safetensors").write_text("its manifest has a checksum of it")
    assert key() == first
    Path("dataset/more").write_text("which the manifest does not know")
    assert key() != first
    Path("dataset/more").write_text("dataset")
    assert key() == first
    Path("dataset/SHA256SUMS").write_text("of all")
    sealed = key()
    Path("dataset/manifest.json").write_text("its checksum tells versions apart")
    assert key() == sealed != first
    Path("dataset/SHA256SUMS").unlink()
    Path("dataset/manifest.json").write_text("changed")
    assert key() != first
    Path("dataset/manifest.json").write_text("dataset")
    Path("params.checked.json").write_text('{"teacher_sha256": "changed"}')
    assert key() != first
    Path("params.checked.json").write_text("{}")
    assert key() == first


EVALUATE = {key: value for key, value in load_yaml(ROOT / "presets/digits.yaml")["evaluate"].items()}
EVALUATE |= {"samples": 2000}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("fmcore/flow/training.py", True),
        ("flows/stages/training.py", True),
        ("fmcore/ode/solvers.py", False),
        ("fmcore/verdict.py", False),
        ("flows/report/page.html", False),
        ("flows/stages/couple.py", False),
        ("flows/events.py", False),
    ],
)
def test_an_edit_of_code_changes_the_key_where_the_stage_needs_it(copied, file, changes):
    first = key()
    (copied / file).write_text((copied / file).read_text() + "\n# edited\n")
    assert (key() != first) == changes
