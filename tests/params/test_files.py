"""Parameters against the presets."""

import json

import pytest

from flows.params import graph
from flows.params.files import PRESETS, ParamsError, lay_over, load_yaml, nearest_preset
from flows.params.preset import rendered
from flows.params.reading import validate
from repository import ROOT

NAMES = sorted(path.stem for path in (ROOT / PRESETS).glob("*.yaml"))


def params_of(name, tmp_path):
    """A preset's parameters as a stage's journal holds them."""
    path = tmp_path / "params.yaml"
    path.write_bytes(rendered(name))
    return json.loads(json.dumps(validate(load_yaml(path), name).model_dump(mode="json")))


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_differs_in_nothing_from_itself(name, tmp_path):
    assert nearest_preset(params_of(name, tmp_path)) == (name, {}, ())


def test_what_differs_is_named(tmp_path):
    params = params_of("smoke", tmp_path)
    params["couple"]["nfe"] = 7
    params["base"]["train"]["images"] = 600_000
    del params["reflow"]["rounds"]["r2"]
    found = nearest_preset(params)
    assert found == ("smoke", {"base.train.images": 600_000, "couple.nfe": 7}, ("reflow.rounds.r2.teacher",))
    assert found.words == ["base.train.images=600k", "couple.nfe=7", "no reflow.rounds.r2.teacher"]


def test_presets_that_cannot_be_read_are_no_mistake(tmp_path):
    assert nearest_preset({"data": {"name": "digits"}}, tmp_path) is None
    (tmp_path / "digits.yaml").write_text("- a list")
    assert nearest_preset({"data": {"name": "digits"}}, tmp_path) is None


def test_a_choice_is_replaced_and_its_keys_are_merged():
    whole = {"network": {"name": "mlp", "width": 1, "depth": 2}, "rounds": {"r1": 1, "r2": 2}}
    lay_over(whole, {"network": {"name": "mlp", "width": 3}, "rounds": {"r1": 5}})
    assert whole == {"network": {"name": "mlp", "width": 3, "depth": 2}, "rounds": {"r1": 5}}
    lay_over(whole, {"network": {"name": "unet"}})
    assert whole["network"] == {"name": "unet"}


ODD = {
    "brackets": ("seed: " + "[" * 5000, "expected sections nested at most 20 deep, got more in line 1"),
    "closed brackets": ("seed: " + "[" * 3000 + "]" * 3000, "nested at most 20 deep"),
    "braces": ("a: " + "{a: " * 500 + "1" + "}" * 500, "nested at most 20 deep"),
    "dashes": ("- " * 5000 + "1", "nested at most 20 deep"),
    "indents": ("\n".join(" " * i + "a:" for i in range(300)), "nested at most 20 deep, got more in line 21"),
    "no date": ("seed: 2024-13-45", "a value cannot be read: month must be in 1..12"),
    "a date": (
        "seed: 2024-01-02",
        "seed: expected a text or a number, got the date 2024-01-02: write it in quotes",
    ),
    "a tag": ("seed: !!int abc", "tags are not supported, got tag:yaml.org,2002:int"),
    "digits": ("seed: " + "1" * 5000, "a value cannot be read: Exceeds the limit"),
    "no character": ('seed: "\\U00110000"', "a value cannot be read: chr"),
    "half a character": (
        'data: {name: "\\ud800"}',
        r'data\.name: expected a text of whole characters, got "\\ud800"',
    ),
    "large": (
        "train: {images: 10000000000000000000000}",
        r"train\.images: expected a number up to 1e\+15, got 1e\+22",
    ),
    "a number for a key": ("rounds: {1: 2}", 'rounds: expected keys that are texts, got 1: write "1" in quotes'),
    "a key of lines": ('"a\\nb": 1', r'params: expected keys that can be printed, got "a\\nb"'),
    "nothing": ("", "expected a mapping of sections, got NoneType"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ODD)
def test_what_no_parameters_are_is_told_in_a_line(what, tmp_path):
    text, message = ODD[what]
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=message) as error:
        load_yaml(path)
    assert "\n" not in str(error.value)


ROUNDS = {
    "": "expected a mapping of sections, got NoneType",
    "reflow: {}": "reflow.rounds: expected at least one round, e.g. {r1: {teacher: base, ...}}, got null",
    "reflow: {rounds: [r1]}": "reflow.rounds: expected at least one round, e.g. {r1: {teacher: base, ...}}, got [",
    "reflow: {rounds: {../x: {teacher: base}}}": "reflow.rounds.../x: expected a name like r1",
    "reflow: {rounds: {a: {teacher: b}, b: {teacher: a}}}": "reflow.rounds.a.teacher: expected a model made",
    "reflow: {rounds: {a: 3}}": "reflow.rounds.a.teacher: expected a model made before it (base), got null",
    "reflow: {rounds: {a: {teacher: base}}}\ndistill: 3": "distill.students: expected at least one student, e.g.",
    "reflow: {rounds: {a: {teacher: base}}}\ndistill: {students: {a: {init: base, couplings: a}}}": (
        "distill.students.a: expected a name like student"
    ),
    "reflow: {rounds: {a: {teacher: base}}}\ndistill: {students: {s: 3}}": (
        "distill.students.s.init: expected one of base, a, got null"
    ),
}


@pytest.mark.parametrize("text", ROUNDS)
def test_what_dvc_cannot_make_its_graph_of_is_told_before_it_tries(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    assert graph.main() == 2
    assert capsys.readouterr().err.startswith(f"params.yaml: {ROUNDS[text]}")


@pytest.mark.parametrize("name", NAMES)
def test_of_a_preset_dvc_makes_its_graph(name, tmp_path, monkeypatch, capsys):
    text = rendered(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes(text)
    assert graph.main() == 0
    assert capsys.readouterr() == ("", "")
