"""The preset cifar10 from data to scores: a small network and some hundred steps, on made-up images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torchvision

from flows.launch.stages import stage_at, started
from flows.params import preset
from flows.params.reading import validate
from fmcore.disk.files import read_json
from fmcore.model import load as load_model
from repository import ROOT

STEPS, BATCH = 150, 8


@pytest.fixture
def params(tmp_path, monkeypatch):
    """The preset, shrunk where a CPU would take weeks, and 512 images of ten colours with noise."""
    monkeypatch.chdir(ROOT)
    raw = preset.overlaid("cifar10")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    random = np.random.default_rng(0)
    label = np.arange(512) % 10
    colour = random.integers(40, 216, (10, 1, 1, 3))[label]
    images = (colour + random.normal(0, 12, (512, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    found = SimpleNamespace(data=images, targets=label.tolist())
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, train, download: found)
    (tmp_path / "data/cifar10").mkdir(parents=True)
    monkeypatch.setattr("flows.scores.probes.REBUILT", 40)  # of 500, one by one on the finest grid
    monkeypatch.setattr("flows.stages.student_matching.ENDS", 50)  # of 1000, and of 1500 data, each at five times
    monkeypatch.setattr("flows.stages.student_matching.DATA", 50)
    raw["device"] = "cpu"
    raw["network"] |= {"channels": [8, 8, 8, 8], "layers": 1}
    raw["features"]["train"] |= {"images": 1000, "batch_size": 50}
    for section, steps in (("base", STEPS), ("reflow", 40), ("distill", 20)):
        train = raw[section]["train"]
        train |= {"images": steps * BATCH, "batch_size": BATCH, "warmup_images": 80, "ema_halflife_images": [400]}
    raw["base"]["train"]["lr"] = 2e-3
    raw["couple"] |= {"pairs": 100, "nfe": 3}
    raw["reflow"]["rounds"] = {"r1": {"teacher": "base", "couple": {}, "train": {}}}
    raw["evaluate"] |= {"samples": 100, "batch": 50, "solvers": {"euler": [1, 4]}}
    return validate(raw, "test")


@pytest.mark.native
def test_the_preset_runs_from_data_to_scores(params):
    assert params.network.attention
    assert params.network.dropout == 0.1
    stages = ("check", "look", "intake", "features", "base", "couple@r1", "reflow@r1", "distill@student")
    for stage in (*stages, "evaluate_base", "evaluate@r1", "evaluate_student@student"):
        list(started(params, stage_at(stage)))
    curve = pd.read_csv("curves/base.csv")
    assert curve.step.max() == STEPS
    assert curve.loss.iloc[-1] < 0.6 * curve.loss.iloc[0]
    assert read_json(Path("couplings/r1/manifest.json"))["solver"] == "heun"
    student = load_model("models/student").sample(20, 1)
    assert student.shape == (20, 3, 32, 32)
    scores = {name: pd.read_csv(f"scores/{name}/scores.csv") for name in ("base", "r1", "student")}
    for name, table in scores.items():
        distance = table[table.metric == "fd_cnn64"].set_index("nfe").value
        assert distance[1] > 0, name
    straight = {name: scores[name][scores[name].metric == "straightness"].value.item() for name in ("base", "r1")}
    assert straight["r1"] < straight["base"]
