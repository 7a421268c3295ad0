"""Students by every ending: trained, killed and resumed, side by side, scored, loaded and taken away."""

import onnxruntime
import pandas as pd
import pytest
import torch

from flows import layout
from fmcore.cli import main
from fmcore.disk.files import read_json
from fmcore.endings import ENDINGS
from fmcore.flow.pixels import quantise
from fmcore.model import load
from fmcore.ode.sampling import Sampling
from stage_runs import (
    REGRESSION,
    checkpoints_at_every_record,
    events_of,
    killed_at,
    notes,
    points,
    run,
    small,
    tiny,
)

SQUARED = {"distance": {"name": "squared"}}
OTHERS = {
    "consistency": {**SQUARED, "at_noise": 0.5, "halvings": 3},
    **{name: {**SQUARED, "diagonal": 0.5, "match": None} for name in ("shortcut", "lagrangian", "meanflow")},
}
TO_COUPLINGS = ("check", "features", "base", "couple@r1")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def student(name, **differs):
    return {"init": "base", "couplings": "r1", "differs": {"ending": {"name": name, **OTHERS[name]}, **differs}}


def test_every_ending_is_tried_here_or_elsewhere():
    assert set(OTHERS) | {"matched", "regression"} == set(ENDINGS)


@pytest.mark.slow
@pytest.mark.native
def test_students_by_all_endings_are_made_side_by_side(monkeypatch):
    students = {name: student(name) for name in OTHERS}
    students["one"] = {"init": "base", "couplings": "r1", "differs": {"ending": REGRESSION}}
    params = points(distill__students=students, distill__train=small(7500))
    list(run(params, *TO_COUPLINGS, "reflow@r1", *(f"distill@{name}" for name in students)))
    checkpoints_at_every_record(monkeypatch)
    for name in OTHERS:
        made = load(f"models/{name}")
        assert made.manifest["ending"] == name
        assert made.k is None
        assert (made.network_config.name == "flow_map") == (name != "consistency")
        killed_at(events_of(params, f"distill@{name}"), 5000, name)
        assert any("going on from step" in line for line in notes(run(params, f"distill@{name}")))
        assert load(f"models/{name}").digest == made.digest
        for how in (1, 3, Sampling("ab2", nfe=4)):
            assert torch.isfinite(made.sample(10, how)).all()
        made.save("again")
        assert torch.equal(load("again").sample(5, 2), made.sample(5, 2))
    list(run(params, "evaluate_base", "evaluate@r1", *(f"evaluate_student@{name}" for name in students)))
    list(run(params, "evaluate_pairs@r1", "report"))
    scores = pd.read_csv(layout.REPORTS / "scores.csv")
    for name in OTHERS:
        assert set(scores[scores.model == name].nfe) == {1, 4}
    metrics = read_json(layout.REPORTS / "metrics.json")
    assert set(metrics["sliced_wasserstein"]) == {"base", "r1", *students}
    page = (layout.REPORTS / "index.html").read_text()
    assert (
        "what consistency, shortcut, lagrangian, meanflow, one learnt from: the score of the pairs of r1" in page
    )


@pytest.mark.native
def test_a_flow_map_of_images_with_classes_is_taken_away():
    network = {"name": "unet", "channels": [8, 16], "layers": 1, "attention": False, "dropout": 0.0, "patch": 1}
    params = tiny(
        conditional=True,
        network=network,
        base__train=small(400),
        couple__pairs=100,
        distill__students={"student": student("shortcut")},
        distill__train=small(400),
    )
    list(run(params, "check", "base", "couple@r1", "distill@student"))
    model = load("models/student")
    assert model.network_config.name == "flow_map"
    assert main(["export", "models/student", "away", "--to", "torch", "--nfe", "3"]) == 0
    noise, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    program = torch.export.load("away/model.pt2").module()
    wanted = model.carry(noise, 3, label=label, precision="fp32")
    torch.testing.assert_close(program(noise, label), wanted, rtol=1e-4, atol=1e-5)
    assert main(["export", "models/student", "onnx", "--to", "onnx", "--nfe", "3"]) == 0
    session = onnxruntime.InferenceSession("onnx/model.onnx")
    (images,) = session.run(None, {"noise": noise.numpy(), "label": label.numpy()})
    apart = torch.from_numpy(images).int() - quantise(wanted).permute(0, 2, 3, 1).int()
    assert apart.abs().max() <= 1, "grey levels"
    assert main(["sample", "models/student", "--nfe", "2", "--count", "4", "--out", "grid.png"]) == 0
    assert main(["export", "models/student", "there", "--to", "diffusers", "--nfe", "2"]) == 2


def test_a_base_that_predicts_noise_goes_through_the_whole_pipeline():
    """Its predicted data are cut to the range of images; a round that starts from it learns v."""
    params = tiny(
        base__path={"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
        base__predicts="noise",
        evaluate__solvers={"euler": [1, 4], "ancestral": [4]},
    )
    list(run(params, *TO_COUPLINGS, "reflow@r1", "distill@student", "evaluate_base", "evaluate@r1"))
    list(run(params, "evaluate_student@student", "evaluate_pairs@r1", "report"))
    base, r1 = load("models/base").convention, load("models/r1").convention
    assert (base.predicts, base.clip) == ("noise", 1.0)
    assert (r1.predicts, r1.clip) == ("v", None)
    scores = pd.read_csv(layout.REPORTS / "scores.csv")
    ways = {model: set(scores[scores.model == model].solver) for model in ("base", "r1", "student")}
    assert ways == {"base": {"euler", "ancestral"}, "r1": {"euler"}, "student": {"euler"}}, "no other is a score"
