"""Parameters against the presets."""

import json

import pytest

from flows.params.files import PRESETS, lay_over, load_yaml, nearest_preset
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
