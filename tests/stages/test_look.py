"""The stage look: what it notices of the data's files, and how little it takes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import layout
from flows.params.reading import load_yaml
from flows.stages.look import main
from flows.workshop.place import bring
from repository import ROOT


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_params({"name": "images", "root": "photographs"})
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png", ".hidden/1.png"):
        file = tmp_path / "photographs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path


def write_params(data):
    Path("params.yaml").write_text(json.dumps({"data": data}))


def looked():
    assert main() == 0
    return layout.SEEN.read_bytes()


CHANGES = {
    "new": lambda: Path("photographs/cats/3.png").write_bytes(b"new"),
    "gone": lambda: Path("photographs/cats/2.png").unlink(),
    "longer": lambda: Path("photographs/cats/2.png").write_bytes(b"a longer text"),
    "as long, later": lambda: os.utime("photographs/cats/2.png", (1, 2)),
    "renamed": lambda: Path("photographs/dogs").rename("photographs/wolves"),
    "another folder": lambda: write_params({"name": "images", "root": "."}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_seen(change):
    before = looked()
    assert looked() == before
    CHANGES[change]()
    assert looked() != before


def test_what_is_counted():
    found = json.loads(looked())
    assert (found["name"], found["files"], found["bytes"]) == ("images", 4, len("cats/1.png") * 3 + 13)


def test_the_same_files_elsewhere_look_the_same(project):
    before = json.loads(looked())
    shutil.copytree("photographs", "copied")  # with their times
    write_params({"name": "images", "root": "copied"})
    assert json.loads(looked()) == before


def test_links_are_followed_once_and_a_pipe_is_not_opened(project):
    Path("photographs/again").symlink_to(project / "photographs")
    Path("photographs/gone.png").symlink_to("nowhere")
    (project / "more").mkdir()
    (project / "more/1.png").write_bytes(b"linked")
    Path("photographs/more").symlink_to(project / "more")
    os.mkfifo("photographs/pipe.png")
    assert json.loads(looked())["files"] == 6
    before = looked()
    (project / "more/1.png").write_bytes(b"changed where it lies")
    assert looked() != before


@pytest.mark.parametrize(
    "data", [{"name": "digits"}, {"name": "mnist", "root": "nowhere", "download": True}, None, "digits"]
)
def test_nothing_to_look_at(data):
    write_params(data)
    before = looked()
    assert looked() == before


def test_what_is_missing_is_named(capsys):
    write_params({"name": "images", "root": "nowhere"})
    assert main() == 1
    assert capsys.readouterr().err == "data.root: no file or folder 'nowhere'\n"
    assert not layout.SEEN.exists()


def test_a_copy_of_the_project_finds_what_git_ignores(project, monkeypatch):
    before = looked()
    copy = project / "copy"
    copy.mkdir()
    shutil.copy("params.yaml", copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert looked() == before
    assert Path("photographs").is_symlink()
    assert looked() == before


def test_only_what_params_name_and_the_copy_lacks_is_brought(project, monkeypatch):
    for name in ("teacher", "weights.pth", "r1", "here"):
        (project / name).write_text("the project's")
    copy = project / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    Path("here").write_text("the copy's")
    raw = load_yaml(ROOT / "presets/digits.yaml")
    raw["base"]["teacher"], raw["features"]["weights"], raw["data"]["root"] = "teacher", "weights.pth", "here"
    bring(raw)
    assert sorted(path.name for path in copy.iterdir()) == ["here", "teacher", "weights.pth"]
    assert Path("here").read_text() == "the copy's"


def test_a_column_called_as_a_folder_of_the_project_is_not_brought(project, monkeypatch):
    (project / "dataset").mkdir()
    (project / "patients.csv").write_text("patient\n1\n")
    copy = project / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    bring({"data": {"name": "arrays", "labels": "dataset", "group": "patients.csv"}})
    assert [path.name for path in copy.iterdir()] == ["patients.csv"]


def test_it_imports_no_torch_and_takes_little(project):
    """All that runs where nothing changed, so it must cost next to nothing."""
    code = (
        "import sys, time; from flows.stages.look import main; main();"
        "assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules); print(time.process_time())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert float(out.stdout) < 1.0


def test_many_files_are_looked_at_quickly(project):
    for folder in range(20):
        place = project / f"photographs/{folder}"
        place.mkdir()
        for i in range(250):
            (place / f"{i}.png").touch()
    began = time.process_time()
    assert json.loads(looked())["files"] == 5004
    assert time.process_time() - began < 1.0
