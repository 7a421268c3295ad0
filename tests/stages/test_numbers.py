"""The stages on numbers from files: classes by name, units that come back, likelihoods in the data's units."""

import numpy as np
import pandas as pd
import pytest

import fmcore
from fmcore.cli import main
from stage_runs import run, tiny

MADE = ("check", "features", "base", "couple@r1", "reflow@r1", "distill@student")
LIKELIHOOD = {"samples": 20, "solver": "euler", "nfe": 4, "probes": 0}


def numbers(**data):
    whole = {
        "name": "arrays",
        "array": None,
        "values": "standardised",
        "labels": None,
        "group": None,
        "held_out": 0.2,
    }
    return {"data": {**whole, **data}, "features__extractor": "none"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.native
def test_a_table_comes_back_in_its_units_and_classes(folder, capsys):
    random, kind = np.random.default_rng(0), np.arange(600) % 2
    frame = pd.DataFrame({"mass": random.normal(5000 + 900 * kind, 100), "size": random.normal(0.002, 1e-4, 600)})
    frame["kind"] = np.array(["cat", "dog"])[kind]
    frame.to_csv("table.csv", index=False)
    data = numbers(root="table.csv", shape=[2], labels="kind")
    metrics = {"evaluate__metrics": ["mmd"], "evaluate__likelihood": LIKELIHOOD, "evaluate__samples": 100}
    list(run(tiny(**data, conditional=True, **metrics), *MADE, "evaluate_student@student"))
    assert (
        main(["sample", "models/base", "--label", "dog", "--count", "200", "--nfe", "8", "--out", "dogs.csv"]) == 0
    )
    dogs = pd.read_csv("dogs.csv")
    assert list(dogs.columns) == ["mass", "size"]
    assert dogs.mass.mean() == pytest.approx(5900, abs=150)
    assert dogs["size"].mean() == pytest.approx(0.002, abs=1e-4)
    model = fmcore.load("models/student")
    assert model.class_names == ("cat", "dog")
    assert main(["sample", "models/student", "--label", "cow", "--out", "x.csv"]) == 2
    assert "label: expected one of cat, dog, got 'cow'" in capsys.readouterr().err
    scores = pd.read_csv("scores/student/scores.csv")
    assert {"mmd", "sliced_wasserstein", "energy_distance"} < set(scores.metric)


def test_a_likelihood_is_in_the_data_s_units(folder):
    x = np.random.default_rng(0).normal(size=(400, 3))
    nats = []
    for scale in (1.0, np.array([10.0, 0.5, 4.0])):
        np.save("x.npy", x * scale)
        changes = {"evaluate__likelihood": LIKELIHOOD, "evaluate__samples": 100}
        params = tiny(**numbers(root="x.npy", shape=[3]), **changes)
        list(run(params, "check", "features", "base", "evaluate_base"))
        scores = pd.read_csv("scores/base/scores.csv")
        nats.append(float(scores[scores.metric == "nats"].value.iloc[0]))
    # A density in units k times smaller is k times smaller, whatever the model.
    assert nats[1] - nats[0] == pytest.approx(np.log(10 * 0.5 * 4), abs=1e-3)


@pytest.mark.parametrize("shape", [(2, 16), (4, 3, 5)])
def test_series_and_arrays_go_through_all_stages(folder, shape):
    x = np.random.default_rng(0).normal(3, 7, size=(300, *shape)).astype(np.float32)
    np.save("x.npy", x)
    list(run(tiny(**numbers(root="x.npy", shape=list(shape)), evaluate__samples=100), *MADE, "evaluate_base"))
    samples = fmcore.load("models/student").sample(50, 2, precision="fp32")
    assert samples.shape == (50, *shape)
    assert float(samples.mean()) == pytest.approx(3, abs=2)
    scores = pd.read_csv("scores/base/scores.csv")
    assert np.isfinite(scores.value).all()
