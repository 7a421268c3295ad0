"""What is said of a stage to who watches it."""

from copy import deepcopy

import pytest

from flows.launch.about import about, own_params
from flows.launch.stages import stage_at
from flows.params.files import PRESETS, load_yaml
from flows.params.reading import validate
from flows.workshop.entry import addresses, entry_of
from repository import ROOT


@pytest.fixture(scope="module")
def raw():
    found = load_yaml(ROOT / PRESETS / "digits.yaml")
    found["reflow"]["rounds"]["r2"] |= {"train": {"lr": 5e-4}, "couple": {"nfe": 8}}
    return found


def own(address, raw):
    return own_params(stage_at(address), entry_of(address, raw))


def test_models_are_compared_by_keys_of_the_same_name(raw):
    assert own("base", raw)["train"]["images"] == raw["base"]["train"]["images"]
    raw = deepcopy(raw)
    raw["distill"]["students"]["student"]["differs"] = {"train": {"images": 7_000}}
    before = deepcopy(raw)
    found = own("distill@student", raw)
    assert raw == before, "the stage compares these with the file when it ends"
    assert found["train"] == before["distill"]["train"] | {"images": 7_000} != before["distill"]["train"]
    assert found["init"] == raw["distill"]["students"]["student"]["init"]
    for name, lr, nfe in (("r1", raw["reflow"]["train"]["lr"], raw["couple"]["nfe"]), ("r2", 5e-4, 8)):
        assert own(f"reflow@{name}", raw)["train"] == raw["reflow"]["train"] | {"lr": lr}
        assert own(f"couple@{name}", raw)["couple"] == raw["couple"] | {"nfe": nfe}
        assert own(f"reflow@{name}", raw)["teacher"] == raw["reflow"]["rounds"][name]["teacher"]


def test_stages_of_one_model_agree(raw):
    """They are logged into one run, in which a parameter has one value."""
    params = validate(raw, "params.yaml")
    for name in params.models:
        seen = {}
        for address in addresses(raw):
            if stage_at(address).name == name:
                for key, value in own(address, raw).items():
                    assert seen.setdefault(key, value) == value, (address, key)


def test_the_report_tells_what_decides_each_model(raw, tmp_path):
    """Of the models too that no stage ran for, because DVC knew them."""
    params = validate(raw, "params.yaml")
    told = about(params, stage_at("report"), entry_of("report", raw), tmp_path).by_model
    for address in addresses(raw):
        model = stage_at(address).name
        if model in params.models:
            said = about(params, stage_at(address), entry_of(address, raw), tmp_path).by_model[model]
            assert said.items() <= told[model].items(), address
    assert told["r2"]["train"]["lr"] == 5e-4
    assert told["r2"]["couple"]["nfe"] == 8


def test_only_stages_of_a_model_have_parameters_of_one(raw, tmp_path, monkeypatch):
    params = validate(raw, "params.yaml")
    monkeypatch.setenv("DVC_EXP_NAME", "lucky-newt")
    for address in addresses(raw):
        stage = stage_at(address)
        said = about(params, stage, entry_of(address, raw), tmp_path)
        assert said.model == (stage.name if stage.name in params.models else "")
        of = params.models if address == "report" else filter(None, [said.model])
        assert list(said.by_model) == list(of)
        assert said.always == (address == "look")
        assert (said.tags["dvc.exp"], said.tags["fmcore.checkout"]) == ("lucky-newt", str(tmp_path))
