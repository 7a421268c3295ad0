"""Presets: each is valid, lists only what differs, says what it takes, and keeps the file it replaces."""

import json
import re
import shutil

import pytest

from flows.params import preset
from flows.params.reading import load_yaml, read, validate
from repository import ROOT

RAW = load_yaml(ROOT / "presets/digits.yaml")  # not params.yaml, which is the user's to edit
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def raw_leaves(value, at=""):
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from raw_leaves(item, f"{at}{key}.")
        else:
            yield f"{at}{key}", item


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_list_only_what_differs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    whole = json.loads(json.dumps(preset.overlaid(name)))
    validate(whole, name)
    if name != preset.DEFAULT:
        default = dict(raw_leaves(RAW))
        over = load_yaml(ROOT / "presets" / f"{name}.yaml")
        for path, value in raw_leaves(over):
            section = path.split(".")[0]
            replaced = over[section].get("name", RAW[section].get("name")) != RAW[section].get("name")
            in_rounds = path.startswith(("reflow.rounds", "distill.students", "evaluate.solvers"))
            assert (
                replaced or in_rounds or path.endswith(".name") or path not in default or default[path] != value
            ), path


@pytest.mark.parametrize("name", PRESETS)
def test_presets_state_command_time_and_result(name):
    text = (ROOT / "presets" / f"{name}.yaml").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    if name != preset.DEFAULT:
        assert f"make preset NAME={name}" in head
        assert re.search(r"minute|hour|second", head)


def test_preset_keeps_the_file_it_replaces(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    assert preset.main(["moons"]) == 0
    assert (tmp_path / "params.yaml.bak").read_text() == "mine: 1\n"
    assert read(tmp_path / "params.yaml").data.name == "moons"
    (tmp_path / "params.yaml").write_text("mine: 2\n")
    assert preset.main(["smoke"]) == 0
    assert (tmp_path / "params.yaml.bak").read_text() == "mine: 1\n"
    assert (tmp_path / "params.yaml.bak1").read_text() == "mine: 2\n"
    assert preset.main(["smok"]) == 2
    assert re.search("expected one of .*got 'smok'; did you mean smoke?", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [("dataa: 1\n", "dataa: not a key of presets/digits.yaml"), ("data: [\n", "not YAML: ")],
    ids=["key", "yaml"],
)
@pytest.mark.parametrize("asked", ["moons", "mine"])
def test_a_mistake_in_any_preset_names_its_file(text, mistake, asked, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "presets/mine.yaml").write_text(text)
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    monkeypatch.chdir(tmp_path)
    assert preset.main([asked]) == 2
    assert capsys.readouterr().err.startswith(f"presets/mine.yaml: {mistake}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml", "presets"]
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"


def test_the_defaults_stand_word_for_word_in_their_preset():
    """Unless the user has edited params.yaml, which is what it is for."""
    file, preset = ROOT / "params.yaml", ROOT / "presets/digits.yaml"
    if load_yaml(file) == load_yaml(preset):
        assert file.read_text() == preset.read_text()
