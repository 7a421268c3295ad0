"""params.yaml: every key is read, every mistake is one line that names it."""

from dataclasses import asdict, fields, is_dataclass

import pytest
from ruamel.yaml import YAML

import edited
from flows.params.reading import ParamsError, load_yaml, read, validate
from flows.params.schema import Params
from repository import ROOT

DEFAULT = ROOT / "presets/digits.yaml"  # not params.yaml, which is the user's to edit
RAW = load_yaml(DEFAULT)
MATCHED, TRAIN = RAW["distill"]["ending"], RAW["distill"]["train"]
REGRESSION = {"name": "regression", "k": 1, "distance": {"name": "squared"}}
IMAGES = {"name": "images", "root": "images", "size": 32, "channels": 3, "fit": "crop"}
IMAGES |= {"background": "white", "levels": "auto", "held_out": 0.0, "group": None}
POINTS = {"data": {"name": "moons", "count": 100}, "features": {**RAW["features"], "extractor": "none"}}


def changed(path, value):
    return edited.changed(RAW, path, value)


def mistakes(raw):
    with pytest.raises(ParamsError) as caught:
        validate(raw, "params.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("params.yaml: ") for line in lines)
    return [line.removeprefix("params.yaml: ") for line in lines]


def leaves(value, at=""):
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{at}{field.name}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{at}{key}.")
    else:
        yield at.rstrip("."), value


def raw_leaves(value, at=""):
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from raw_leaves(item, f"{at}{key}.")
        else:
            yield f"{at}{key}", item


def test_the_file_holds_every_field_and_no_other():
    params = read(DEFAULT)
    declared = {path for name in Params.model_fields for path, _ in leaves(getattr(params, name), f"{name}.")}
    written = {path for path, value in raw_leaves(RAW) if value != {}}
    assert written == declared


def test_values_are_read_as_written():
    params = read(DEFAULT)
    for name in Params.model_fields:
        for path, value in leaves(getattr(params, name), f"{name}."):
            at = RAW
            for part in path.split("."):
                at = at[part]
            if isinstance(value, tuple):
                value = [asdict(one) if is_dataclass(one) else one for one in value]
            assert value == at, path


WRONG = {
    "unknown key": (changed("base.train.lerning_rate", 1.0), "base.train.lerning_rate: unknown key"),
    "mistyped section": ({**RAW, "evalute": {}}, "evalute: unknown key; did you mean evaluate?"),
    "number as text": (changed("base.train.lr", "1e-3"), 'base.train.lr: expected a valid number, got "1e-3"'),
    "text for a count": (changed("couple.pairs", "many"), "couple.pairs: expected a valid integer"),
    "fraction for a count": (changed("couple.pairs", 0.5), "couple.pairs: expected a valid integer"),
    "not finite": (changed("base.train.lr", float("nan")), "base.train.lr: expected a finite number"),
    "negative": (changed("base.train.lr", -1.0), "lr (=-1.0)"),
    "out of range": (changed("base.train.lr_final", 2.0), "base.train: lr_final (=2.0) must lie in [0, 1]"),
    "unknown data": (changed("data.name", "digit"), "data.name: expected one of digits,"),
    "no name": (changed("network", {"width": 3}), "network.name: missing"),
    "foreign key of a choice": (changed("network.channels", [8]), "network.channels: unknown key"),
    "unknown path": (changed("base.path", {"name": "cubic"}), "base.path.name: expected one of linear, cosine"),
    "path as text": (changed("base.path", "linear"), "base.path"),
    "path out of range": (
        changed("base.path", {"name": "vp", "beta_min": 0.0, "beta_max": 20.0}),
        "base.path: vp",
    ),
    "table as a path": (changed("base.path", {"name": "discrete"}), "base.path.name: expected one of linear"),
    "unknown weighting": (changed("base.weighting", "snr"), "base.weighting: expected one of none, data"),
    "unknown coupling": (
        changed("base.coupling", "ot"),
        "base.coupling: expected one of independent, minibatch_ot",
    ),
    "OT where pairs are stored": (
        changed("base", {**RAW["base"], "coupling": "minibatch_ot", "teacher": "somewhere"}),
        "base.coupling: minibatch_ot needs a base to train, and base.teacher is one already made",
    ),
    "dropout without labels": (
        changed("base.label_dropout", 0.1),
        "base.label_dropout: 0.1 needs conditional: true, got false",
    ),
    "dropout of all labels": (
        changed("base.label_dropout", 1.0),
        "base.label_dropout: expected a number in [0, 1)",
    ),
    "guidance without labels": (
        changed("couple.guidance", {"scale": 2.0, "start": 0.0, "stop": 1.0}),
        "couple.guidance: expected null for the teacher base: guidance needs a base trained with labels "
        "(conditional: true) and base.label_dropout > 0, or a diffusion model with a class for none; a "
        "round may have its own",
    ),
    "guidance interval": (
        changed("couple.guidance", {"scale": 2.0, "start": 0.5, "stop": 0.5}),
        "couple.guidance: guidance needs scale >= 0",
    ),
    "neither number nor auto": (
        changed("couple.batch", "lots"),
        'couple.batch: expected a whole number or auto, got "lots"',
    ),
    "odd nfe under guidance": (
        changed("couple", {**RAW["couple"], "nfe": 5, "guidance": {"scale": 2.0, "start": 0.0, "stop": 1.0}}),
        "couple.nfe: expected one of 2, 4, 6, ... for ab2 under guidance, got 5",
    ),
    "random couplings": (changed("couple.solver", "sde"), "couple.solver: sde is stochastic, and couplings need"),
    "inversion by a one-way solver": (
        changed("couple", {**RAW["couple"], "solver": "noise_anchored", "inverted": 10}),
        "couple.solver: noise_anchored runs from noise to data only, so couple.inverted must be 0",
    ),
    "EMA that is not kept": (
        changed("couple.ema", 7.0),
        "couple.ema: expected null or, after the first, a half-life of base's train.ema_halflife_images ([]), got",
    ),
    "EMA twice": (changed("base.train.ema_halflife_images", [5, 5]), "ema_halflife_images must list each once"),
    "unknown metric": (changed("evaluate.metrics", ["fid"]), "evaluate.metrics: expected any of kid"),
    "unknown grid": (changed("couple.grid", {"name": "log"}), "couple.grid.name: expected one of uniform, cosine"),
    "optimised grid for scores": (
        changed("evaluate.grids", [{"name": "optimised", "trajectories": 4}]),
        "evaluate.grids",
    ),
    "mix without inverted data": (
        changed("reflow.mix.inverted", 0.2),
        "reflow.mix.inverted: 0.2 needs couple.inverted > 0, got 0",
    ),
    "mix out of range": (changed("reflow.mix.until", 0.0), "reflow.mix: expected inverted and slerp in [0, 1]"),
    "slerp of nothing": (changed("reflow.mix.slerp", 0.1), "reflow.mix.inverted: slerp and refresh_images act on"),
    "labels to drop": (changed("reflow.labels", "drop"), "reflow.labels: drop needs conditional: true, got false"),
    "likelihood of a stochastic sampler": (
        changed("evaluate.likelihood", {"samples": 10, "solver": "sde", "nfe": 8, "probes": 1}),
        "evaluate.likelihood.solver: sde has no likelihood; expected a deterministic solver",
    ),
    "perceptual distance on another path": (
        changed(
            "base",
            {
                **RAW["base"],
                "path": {"name": "cosine"},
                "distance": {
                    **{"name": "lpips", "backbone": "a.pth", "linear": "b.pth", "size": 64},
                    **{"huber": True, "over_noise": False, "scale": 0.001},
                },
            },
        ),
        "base.distance.name: lpips needs base.path {name: linear, sigma_min: 0}, got cosine",
    ),
    "a prediction on a path of no unit scale": (
        changed(
            "base",
            {**RAW["base"], "path": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}, "predicts": "noise"},
        ),
        "base.predicts: expected velocity with base.path ve, got noise",
    ),
    "a prediction of a teacher's": (
        changed("base", {**RAW["base"], "teacher": "some/folder", "predicts": "v"}),
        "base.predicts: expected velocity with base.teacher some/folder, got v",
    ),
    "points to flip": ({**RAW, **POINTS, "flip": True}, "flip: moons are no images, expected false"),
    "a teacher of points": (
        {**RAW, **POINTS, "base": {**RAW["base"], "teacher": "x"}},
        "base.teacher: expected null for moons, no images",
    ),
    "unknown solver": (changed("couple.solver", "leapfrog"), "couple.solver: expected one of euler"),
    "solver of no couplings": (
        changed("couple.solver", "dopri5"),
        'rk4, ab2, noise_anchored, got "dopri5"; adaptive steps are evaluate.dopri5',
    ),
    "nfe of heun": (changed("evaluate.solvers.heun", [4]), "evaluate.solvers.heun: expected one of 1, 3, 5, ..."),
    "no euler": (changed("evaluate.solvers", {"heun": [3]}), "evaluate.solvers.euler: expected at least one"),
    "teacher that is not there": (
        changed("reflow.rounds.r2.teacher", "r7"),
        'reflow.rounds.r2.teacher: expected a model made before it (base, r1), got "r7"',
    ),
    "teacher of itself": (changed("reflow.rounds.r1.teacher", "r1"), "reflow.rounds.r1.teacher: expected a model"),
    "round called base": (
        changed("reflow.rounds", {"base": {"teacher": "base", "couple": {}, "train": {}}}),
        "reflow.rounds.base: expected a name like r1",
    ),
    "round with a shell in its name": (
        changed("reflow.rounds", {"$(touch x)": {"teacher": "base", "couple": {}, "train": {}}}),
        "reflow.rounds.$(touch x): expected a name like r1",
    ),
    "override of no key": (
        changed("reflow.rounds.r2.train", {"lrr": 1.0}),
        "reflow.rounds.r2.train.lrr: unknown key",
    ),
    "override out of range": (changed("reflow.rounds.r2.train", {"lr": -1.0}), "reflow.rounds.r2.train"),
    "override of nfe": (changed("reflow.rounds.r2.couple", {"solver": "heun", "nfe": 4}), "rounds.r2.couple.nfe"),
    "k_grid for a flow": (
        changed("base.times", {"name": "k_grid", "k": 2}),
        "base.times.name: k_grid is",
    ),
    "an NFE twice": (
        changed("evaluate.solvers", {"euler": [1, 1]}),
        "euler: expected each NFE once",
    ),
    "too few samples": (changed("evaluate.samples", 70), "evaluate"),
    "samples that make a covariance singular with a tenth left out": (
        {
            **changed("evaluate.samples", 2276),
            "features": {**RAW["features"], "extractor": "inception-v3-compat"},
        },
        "evaluate.samples: expected at least 2277 for 2048 features, got 2276",
    ),
    "couplings that cannot be scored": (
        changed("couple.pairs", 70),
        "couple.pairs: expected at least 73, to be scored on 64 features, got 70",
    ),
    "a seed beyond 64 bits": (changed("seed", 2**63), "seed: expected a number in [0, 2^63)"),
    "points with a classifier": (
        changed("data", {"name": "moons", "count": 100}),
        'features.extractor: expected "none" for moons, no images',
    ),
    "images without extractor": (changed("features.extractor", "none"), "features.extractor: none is for points"),
    "rotation of strips": (
        {
            **changed("data", {**IMAGES, "size": [32, 48]}),
            "features": {**RAW["features"], "extractor": "rotation"},
        },
        "features.extractor: rotation turns images and needs square ones, got 32x48",
    ),
    "three sides": (
        changed("data", {**IMAGES, "size": [32, 48, 64]}),
        "data.size: expected a whole number or a list of two, got [32, 48, 64]",
    ),
    "no side": (changed("data", {**IMAGES, "size": "big"}), "data.size: expected a whole number or a list of two"),
    "no level": (changed("data", {**IMAGES, "levels": 1.5}), "data.levels: expected a whole number or auto, got"),
    "no way to fit": (changed("data", {**IMAGES, "fit": "cut"}), "data.fit: expected 'crop', 'pad' or 'stretch'"),
    "no colour": (
        changed("data", {**IMAGES, "background": "whit"}),
        "data: background must be a colour, e.g. white, black or '#808080', got 'whit'",
    ),
    "unknown extractor": (
        changed("features.extractor", "inception"),
        "features.extractor: expected one of classifier",
    ),
    "weights without inception": (changed("features.weights", "file"), "features: expected weights null"),
    "download without inception": (changed("features.download", True), "features: expected weights null"),
    "no grids": (changed("evaluate.grids", []), "evaluate.grids: expected at least one grid"),
    "a grid twice": (
        changed("evaluate.grids", [{"name": "uniform"}, {"name": "uniform"}]),
        "evaluate.grids: expected at least one grid and each once",
    ),
    "no repeats": (changed("evaluate.repeats", 0), "evaluate.repeats: expected a number >= 1, got 0"),
    "inception score without classes": (
        {
            **changed("features.extractor", "rotation"),
            "evaluate": {**RAW["evaluate"], "metrics": ["inception_score"]},
        },
        "evaluate.metrics: inception_score needs features.extractor classifier",
    ),
    "missing key": ({k: v for k, v in RAW.items() if k != "seed"}, "seed: missing"),
    "missing key with a default": (
        changed("base.train", {k: v for k, v in RAW["base"]["train"].items() if k != "ema_rampup"}),
        "base.train.ema_rampup: missing; its usual value is 0.05",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_that_names_the_key(case):
    raw, expected = WRONG[case]
    lines = mistakes(raw)
    assert any(expected in line for line in lines), lines
    assert len(lines) <= 3, lines


def test_several_mistakes_are_told_at_once():
    raw = changed("base.train.lr", "fast")
    raw["seed"] = "zero"
    assert len(mistakes(raw)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("a: &x 1\nb: *x\n", "anchors and aliases"),
        ("seed: 1\nseed: 2\n", "not YAML"),
        ("x" * 70_000, "expected at most"),
    ],
)
def test_files_that_are_no_params(tmp_path, text, expected):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=expected):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match="cannot be read"):
        read(tmp_path / "params.yaml")


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    text = DEFAULT.read_text().replace("lr: 1.0e-3", "lr: 1e-3")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert read(path).base.train.lr == 0.001
    assert YAML(typ="safe").load(text)["base"]["train"]["lr"] == 0.001


def renamed(section, old, new):
    return {(new if key == old else key): value for key, value in section.items()}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (renamed(RAW, "flip", "filp"), "test: filp: unknown key; did you mean flip?"),
        (
            changed("base.train", renamed(RAW["base"]["train"], "batch_size", "batchsize")),
            "test: base.train.batchsize: unknown key; did you mean batch_size?",
        ),
        ({key: value for key, value in RAW.items() if key != "flip"}, "test: flip: missing"),
    ],
)
def test_a_mistyped_key_is_one_mistake(raw, expected):
    with pytest.raises(ParamsError) as raised:
        validate(raw, "test")
    assert str(raised.value) == expected


def test_a_key_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("reflow:\n  rounds: {1: {teacher: base}, r2: {teacher: 1}}\nevaluate: [{true: x}]\n")
    with pytest.raises(ParamsError) as caught:
        load_yaml(path)
    first, second = str(caught.value).splitlines()
    assert first.endswith('reflow.rounds: expected keys that are texts, got 1: write "1" in quotes')
    assert "evaluate.0: expected keys that are texts, got True" in second
