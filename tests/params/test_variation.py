"""Parameters that differ from params.yaml: what a form or a schedule may ask for, and what it may not."""

import pytest

from flows.params.files import ParamsError, load_yaml, presets
from flows.params.variation import Variation, parsed, varied
from repository import ROOT

TEXT = (ROOT / "presets/digits.yaml").read_bytes()


def made(tmp_path, overrides=None, **fields):
    """What a variation makes of the defaults, as params.yaml is read."""
    path = tmp_path / "params.yaml"
    path.write_bytes(varied(ROOT, TEXT, Variation(overrides=parsed(overrides), **fields)))
    return load_yaml(path)


def test_keys_are_set_and_all_else_stays_with_its_comments(tmp_path):
    found = made(tmp_path, ["couple.nfe=8", "reflow.rounds.r2.train = {lr: 0.002}", "evaluate.metrics=[kid]"])
    whole = load_yaml(ROOT / "presets/digits.yaml")
    assert found["couple"].pop("nfe") == 8
    assert found["reflow"]["rounds"]["r2"].pop("train") == {"lr": 0.002}
    assert found["evaluate"].pop("metrics") == ["kid"]
    del whole["couple"]["nfe"], whole["reflow"]["rounds"]["r2"]["train"], whole["evaluate"]["metrics"]
    assert found == whole
    assert b"# a guided step counts twice" in (tmp_path / "params.yaml").read_bytes()


def test_a_mapping_says_the_same_as_lines(tmp_path):
    assert made(tmp_path, {"couple.nfe": 8}) == made(tmp_path, ["couple.nfe=8"])


def test_fields_of_the_form(tmp_path):
    found = made(tmp_path, rounds=4, nfe=(1, 2), seed=7)
    assert {name: entry["teacher"] for name, entry in found["reflow"]["rounds"].items()} == {
        "r1": "base", "r2": "r1", "r3": "r2", "r4": "r3"
    }  # fmt: skip
    assert found["evaluate"]["solvers"]["euler"] == [1, 2]
    assert found["seed"] == 7
    assert list(made(tmp_path, rounds=1)["reflow"]["rounds"]) == ["r1"]


@pytest.mark.parametrize("name", presets(ROOT))
def test_each_preset_can_be_had(tmp_path, name):
    over = load_yaml(ROOT / f"presets/{name}.yaml")
    found = made(tmp_path, preset=name)
    assert found["data"]["name"] == (over.get("data") or {"name": "digits"})["name"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["couple.nfee=8"], "overrides: couple.nfee: unknown key; did you mean nfe?"),
        (["cuple.nfe=8"], "overrides: cuple: unknown key; did you mean couple?"),
        (["couple.nfe=many"], 'overrides: couple.nfe: expected a valid integer, got "many"'),
        (["seed.x=1"], "overrides: seed.x: seed is no section; give its whole value"),
        (["couple.nfe"], "overrides: expected KEY=VALUE, got 'couple.nfe'"),
        (["../../x=1"], "overrides: expected a dotted key such as couple.nfe, got '../../x'"),
        (["seed=&a 1"], "overrides: seed: anchors and aliases are not supported"),
        ({"seed": -1}, "overrides: seed: expected a number in [0, 2^63), got -1"),
        ({"seed; rm": 1}, "overrides: expected a dotted key such as couple.nfe, got 'seed; rm'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, overrides, line):
    with pytest.raises(ParamsError) as caught:
        made(tmp_path, overrides)
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["smok", "../presets/smoke", "/etc/passwd", "smoke.yaml"])
def test_no_name_of_a_preset_leads_elsewhere(tmp_path, name):
    with pytest.raises(ParamsError, match=r"preset: expected one of digits, .*, got '"):
        made(tmp_path, preset=name)


def test_values_make_no_objects(tmp_path):
    with pytest.raises(ParamsError, match=r"overrides: seed: not YAML: could not determine a constructor"):
        made(tmp_path, ["seed=!!python/object/apply:os.system ['true']"])


def test_without_a_difference_nothing_is_to_be_varied():
    assert not Variation()
    assert Variation(seed=0)
    assert Variation(preset="digits", overrides={"couple.nfe": 8}).words == ["preset=digits", "couple.nfe=8"]
