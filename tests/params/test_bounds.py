"""Numbers beyond any use are answered before anything runs, and those of the presets are not."""

import copy

import pytest

import edited
from flows.params.bounds import BOUNDS, out_of_bounds
from flows.params.files import PRESETS, ParamsError, load_yaml
from flows.params.preset import rendered
from flows.params.reading import validate
from repository import ROOT

RAW = load_yaml(ROOT / "presets/digits.yaml")


def changed(path, value):
    return edited.changed(RAW, path, value)


WRONG = {
    "too many steps": (
        changed("couple.nfe", 10**12),
        "couple.nfe: expected at most 100,000",
    ),
    "too many steps of a score": (
        changed("evaluate.solvers.euler", [1, 4, 10**9]),
        "evaluate.solvers.euler: expected at most 100,000, got 1000000000",
    ),
    "pairs that fit on no disk": (
        changed("couple.pairs", 10**14),
        "couple.pairs: expected at most 10,0",
    ),
    "a batch that fits nowhere": (
        changed("couple.batch", 10**9),
        "couple.batch: expected at most 131072, or auto, since each batch is filled up, got 1000000000",
    ),
    "a rate of learning that is none": (
        changed("distill.train.lr", 3e4),
        "distill.train.lr: expected at most 10,",
    ),
    "a weight that overflows": (
        changed("distill.ending.weight", 1e30),
        "distill.ending.weight: expected at most",
    ),
    "a tolerance below what numbers have": (
        changed("evaluate.dopri5", {"rtol": 1e-30, "atol": 1e-5}),
        "evaluate.dopri5.rtol: expected a number from 1e-12 to 1, got 1e-30",
    ),
    "no pairs left": (
        changed("distill.drop_longest", 0.99999),
        "distill.drop_longest: expected to leave 20",
    ),
    "a round like a folder of scores": (
        changed("reflow.rounds.couplings-r1", {"teacher": "base", "couple": {}, "train": {}}),
        "reflow.rounds.couplings-r1: expected a name like r1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_number_out_of_bounds_is_one_line_that_names_the_key(case):
    raw, expected = WRONG[case]
    with pytest.raises(ParamsError) as error:
        validate(raw, "params.yaml")
    (line,) = str(error.value).split("\n")
    assert line.startswith(f"params.yaml: {expected}")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"couple": {}, "train": {"lr": -1.0}}, "reflow.rounds.r1.train: lr (=-1.0) and clip_norm (=1.0) must be"),
        ({"couple": {"pairs": "x"}, "train": {}}, "reflow.rounds.r1.couple.pairs: expected a valid integer"),
        ({"couple": {"nfe": []}, "train": {}}, "reflow.rounds.r1.couple.nfe: expected a valid integer"),
    ],
)
def test_a_mistake_in_a_round_names_the_round(own, line):
    with pytest.raises(ParamsError) as error:
        validate(changed("reflow.rounds.r1", {"teacher": "base", **own}), "p")
    assert str(error.value).startswith(f"p: {line}")
    assert "\n" not in str(error.value)


def test_a_round_s_own_numbers_are_bounded_too():
    raw = changed("reflow.rounds.r1", {"teacher": "base", "couple": {"nfe": 10**9}, "train": {"lr": 1e5}})
    assert [line.partition(":")[0] for line in out_of_bounds(raw)] == [
        "reflow.rounds.r1.couple.nfe",
        "reflow.rounds.r1.train.lr",
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / PRESETS).glob("*.yaml")))
def test_no_preset_is_near_a_bound(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "params.yaml").write_bytes(rendered(name))
    raw = load_yaml(tmp_path / "params.yaml")
    assert list(out_of_bounds(raw)) == []


@pytest.mark.parametrize("key", BOUNDS)
def test_each_bound_is_of_a_key_that_there_is(key):
    """Some are of choices that the preset does not make: they are put where they would stand."""
    section, _, last = key.rpartition(".")
    at = {"train": "base.train", "distance": "reflow.distance", "ending": "distill.ending"}.get(section, section)
    at = {"path": "base.path", "grid": "couple.grid"}.get(section, at)
    there = copy.deepcopy(RAW)
    there["base"]["path"] |= {"sigma_max": 50.0, "beta_min": 0.1, "beta_max": 20.0}
    there["couple"]["grid"] |= {"trajectories": 64}
    there["distill"]["ending"] |= {"k": 1, "halvings": 6}
    there["data"]["count"] = 100
    there["evaluate"] |= {"dopri5": {"rtol": 1e-5, "atol": 1e-5}}
    there["evaluate"] |= {"likelihood": {"samples": 500, "solver": "rk4", "nfe": 256, "probes": 1}}
    for name in at.split("."):
        there = there[name]
    assert last in there if last != "*" else there
