"""Students in params.yaml: what each differs in, and mistakes of theirs, one line each."""

import pytest

import edited
from flows.params.reading import ParamsError, load_yaml, validate
from repository import ROOT

RAW = load_yaml(ROOT / "presets/digits.yaml")
MATCHED, TRAIN = RAW["distill"]["ending"], RAW["distill"]["train"]
REGRESSION = {"name": "regression", "k": 1, "distance": {"name": "squared"}}
MAP = {"name": "shortcut", "distance": {"name": "squared"}, "diagonal": 0.5, "match": None}
MATCH = {key: MATCHED[key] for key in ("at_noise", "start", "weight", "real", "spaces")}


def changed(path, value):
    return edited.changed(RAW, path, value)


WRONG = {
    "drop everything": (changed("distill.drop_longest", 1.0), "distill.drop_longest: expected a number in [0, 1)"),
    "a student whose labels are gone": (
        {
            **changed("reflow.labels", "drop"),
            "conditional": True,
            "distill": {**RAW["distill"], "students": {"s": {"init": "base", "couplings": "r2", "differs": {}}}},
        },
        "distill.labels: expected drop, since reflow.labels drop leaves the couplings of r2 without labels",
    ),
    "a student of no kind": (
        changed("distill.network", {"name": "vit"}),
        "distill.network.name: expected one of mlp",
    ),
    "init that is not there": (
        changed("distill.students.student.init", "r9"),
        "distill.students.student.init: expected one of base, r1, r2",
    ),
    "couplings of no round": (
        changed("distill.students.student.couplings", "base"),
        "distill.students.student.couplings: expected a round (r1, r2)",
    ),
    "student called like a round": (
        changed("distill.students", {"r1": {"init": "base", "couplings": "r1", "differs": {}}}),
        "distill.students.r1: expected a name like student",
    ),
    "no student": (changed("distill.students", {}), "distill.students: expected at least one student, e.g."),
    "a difference in no key": (
        changed("distill.students.student.differs", {"init": "base"}),
        "distill.students.student.differs.init: unknown key; expected any of ending, network, labels",
    ),
    "a difference in no key of a section": (
        changed("distill.students.student.differs", {"train": {"lrr": 1.0}}),
        "distill.students.student.differs.train.lrr: not a key of presets/digits.yaml",
    ),
    "a difference out of range": (
        changed("distill.students.student.differs", {"train": {"lr": -1.0}}),
        "distill.students.student.differs.train: lr (=-1.0) and clip_norm (=1.0) must be positive",
    ),
    "half an ending": (
        changed("distill.students.student.differs", {"ending": {"name": "regression", "k": 2}}),
        "distill.students.student.differs.ending.distance: missing",
    ),
    "a difference that leaves too little": (
        changed("distill.students.student.differs", {"drop_longest": 0.99999}),
        "distill.students.student.differs.drop_longest: expected to leave 20 pairs or more",
    ),
    "a flow map of another path": (
        {
            **changed(
                "distill.ending",
                {"name": "shortcut", "distance": {"name": "squared"}, "diagonal": 0.5, "match": None},
            ),
            "base": {**RAW["base"], "path": {"name": "cosine"}},
        },
        "distill.ending.name: shortcut makes a flow map, which needs base.path {name: linear, sigma_min: 0.0}",
    ),
    "a flow map of a teacher": (
        {
            **changed(
                "distill.ending",
                {"name": "meanflow", "distance": {"name": "squared"}, "diagonal": 0.5, "match": None},
            ),
            "base": {**RAW["base"], "teacher": "some/folder"},
        },
        "distill.ending.name: meanflow makes a flow map, and base.teacher takes no second time",
    ),
    "a flow map of series": (
        {
            **changed(
                "distill.ending",
                {"name": "lagrangian", "distance": {"name": "squared"}, "diagonal": 0.5, "match": None},
            ),
            "data": {
                **{"name": "arrays", "root": "x.npy", "shape": [2, 8], "array": None, "values": "standardised"},
                **{"labels": None, "group": None, "held_out": 0.1},
            },
            "features": {**RAW["features"], "extractor": "none"},
            "network": {"name": "unet1d", "channels": [8, 8], "layers": 1},
        },
        "distill.ending.name: lagrangian needs a network that takes a second time, an mlp or a unet, got unet1d",
    ),
    "all of a batch on the diagonal": (
        changed("distill.ending", {"name": "shortcut", "distance": {"name": "squared"}, "diagonal": 1.0}),
        "distill.ending: a flow map needs diagonal in (0, 1), got 1.0",
    ),
    "more data than there are, for a map": (
        {
            **changed("distill.ending", {**MAP, "match": {**MATCH, "real": 600}}),
            "data": {"name": "moons", "count": 500},
            "features": {**RAW["features"], "extractor": "none"},
        },
        "distill.ending.match.real: expected at most data.count 500, got 600",
    ),
    "one sample a part, for a map": (
        {
            **RAW,
            "distill": {**RAW["distill"], "ending": {**MAP, "match": MATCH}, "train": {**TRAIN, "accumulate": 64}},
        },
        "distill.ending.match: each part of a batch needs 2 samples or more",
    ),
    "matching of a map that never starts": (
        changed("distill.ending", {**MAP, "match": {**MATCH, "start": 1.0}}),
        "distill.ending.match: matching needs at_noise in (0, 1] and start in [0, 1)",
    ),
    "matching of regression": (
        changed("distill.ending", {**REGRESSION, "match": MATCH}),
        "distill.ending.match: unknown key",
    ),
    "gaps that are never halved": (
        changed(
            "distill.ending",
            {"name": "consistency", "distance": {"name": "squared"}, "at_noise": 0.5, "halvings": 0},
        ),
        "distill.ending: consistency needs at_noise in [0, 1] and halvings >= 1",
    ),
    "k of 0": (
        changed("distill.ending", {**REGRESSION, "k": 0}),
        "distill.ending: regression needs k >= 1, got 0",
    ),
    "ending of no kind": (
        changed("distill.ending.name", "magic"),
        "distill.ending.name: expected one of regression, matched",
    ),
    "share beyond one": (
        changed("distill.ending.at_noise", 1.5),
        "distill.ending: matching needs at_noise in (0, 1]",
    ),
    "no space": (changed("distill.ending.spaces", []), "distill.ending: matching needs"),
    "space of no kind": (
        changed("distill.ending.spaces", [{"name": "inception"}]),
        "distill.ending.spaces.0.name: expected one of pixels, hidden",
    ),
    "one sample a part": (
        changed("distill.train.accumulate", 64),
        "distill.ending: each part of a batch needs 2 samples or more",
    ),
    "two rows of data in two parts": (
        {
            **RAW,
            "distill": {**RAW["distill"], "ending": {**MATCHED, "real": 2}, "train": {**TRAIN, "accumulate": 2}},
        },
        "distill.ending: each part of a batch needs 2 samples or more",
    ),
    "base that knows classes only": (
        {**RAW, "conditional": True, "distill": {**RAW["distill"], "labels": "drop"}},
        "distill.labels: drop needs base.label_dropout > 0 for an ending that matches",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_of_a_student_is_one_line_that_names_the_key(case):
    raw, expected = WRONG[case]
    with pytest.raises(ParamsError) as caught:
        validate(raw, "params.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"params.yaml: {expected}")


def test_a_student_differs_from_the_section_in_what_it_lists():
    students = {
        "plain": {"init": "r1", "couplings": "r1", "differs": {}},
        "other": {"init": "base", "couplings": "r2", "differs": {"ending": REGRESSION, "train": {"lr": 5e-4}}},
        "heavy": {"init": "r1", "couplings": "r1", "differs": {"ending": {"name": "matched", "weight": 3.0}}},
    }
    params = validate(changed("distill.students", students), "params.yaml")
    assert params.models == ["base", "r1", "r2", "plain", "other", "heavy"]
    plain, other, heavy = (params.distill_of(name) for name in students)
    assert plain.ending == params.distill.ending
    assert (other.ending.name, other.train.lr, other.train.images) == ("regression", 5e-4, TRAIN["images"])
    assert heavy.ending.weight == 3.0
    assert heavy.ending.real == MATCHED["real"]
