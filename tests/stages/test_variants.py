"""Every choice that params.yaml offers, through the stages themselves: small budgets, real artifacts."""

import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler

from diffusers_teachers import saved, unet
from flows import layout
from flows.events import Note
from fmcore.disk.files import read_json
from fmcore.disk.pairs import open_pairs
from fmcore.flow.times import uniform_grid
from fmcore.model import load as load_model
from fmcore.models.networks import UNet
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.points import energy_distance
from stage_runs import ALL, REGRESSION, notes, points, run, small, tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize("path", ["cosine", "polynomial", "vp", "ve"])
def test_a_base_on_any_path_is_reflowed_on_the_linear_one(path):
    choice = {
        "cosine": {"name": "cosine"},
        "polynomial": {"name": "polynomial", "power": 2.0},
        "vp": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
        "ve": {"name": "ve", "sigma_min": 0.01, "sigma_max": 20.0},
    }[path]
    params = points(
        base__path=choice,
        base__train=small(100_000, batch_size=250),
        couple__nfe=16,
        couple__pairs=2000,
        reflow__train=small(40_000, batch_size=250),
        evaluate__samples=1000,
        evaluate__solvers={"euler": [1, 16]},
    )
    list(run(params, *ALL))
    base, r1 = load_model("models/base"), load_model("models/r1")
    assert base.convention.path.name == r1.convention.path.name == path
    scores = {name: pd.read_csv(f"scores/{name}/scores.csv") for name in ("base", "r1")}
    sliced = {
        name: table[table.metric == "sliced_wasserstein"].set_index("nfe").value for name, table in scores.items()
    }
    assert sliced["base"][16] < 0.9
    assert sliced["r1"][1] < 0.6 * sliced["base"][1]
    bent = {name: table[table.metric == "straightness"].value.item() for name, table in scores.items()}
    assert bent["r1"] < bent["base"] / 3


def test_minibatch_ot_straightens_the_base():
    plain, ot = points(base__train=small(30_000)), points(base__train=small(30_000), base__coupling="minibatch_ot")
    bent = {}
    for name, params in (("plain", plain), ("ot", ot)):
        list(run(params, "check", "features", "base", "evaluate_base"))
        table = pd.read_csv("scores/base/scores.csv")
        bent[name] = table[table.metric == "straightness"].value.item()
    assert bent["ot"] < 0.6 * bent["plain"]


def test_guidance_is_baked_into_couplings_and_labels_may_be_dropped():
    params = tiny(
        conditional=True,
        base__label_dropout=0.2,
        couple__guidance={"scale": 3.0, "start": 0.3, "stop": 1.0},
        couple__nfe=8,
        reflow__labels="drop",
        evaluate__solvers={"euler": [1, 4], "sde": [4]},
        evaluate__metrics=["kid", "precision_recall"],
    )
    list(run(params, *ALL))
    base, r1, student = (load_model(f"models/{name}") for name in ("base", "r1", "student"))
    assert (base.num_classes, base.null_label) == (10, 10)
    assert (r1.num_classes, r1.null_label, student.num_classes) == (None, None, None)
    pairs, manifest = open_pairs("couplings/r1")
    assert manifest["params"]["couple"]["guidance"] == {"scale": 3.0, "start": 0.3, "stop": 1.0}
    assert manifest["network_evaluations"] == 6, "4 steps, of which those at t = 0.5 and 0.75 cost two"
    guidance = params.couple.guidance
    again = integrate(base.field("fp32", guidance), pairs.x0, uniform_grid(4), SOLVERS["euler"], pairs.label)
    torch.testing.assert_close(again, pairs.x1, rtol=1e-3, atol=1e-4)
    unguided = integrate(base.field("fp32"), pairs.x0, uniform_grid(4), SOLVERS["euler"], pairs.label)
    assert (unguided - pairs.x1).abs().max() > 0.01
    table = pd.read_csv("scores/base/scores.csv")
    assert set(table.solver) == {"euler", "sde"}
    assert set(pd.read_csv("scores/r1/scores.csv").solver) == {"euler"}, "a rectified velocity is no score"
    for metric in ("fd_cnn64", "kid", "precision", "recall"):
        assert list(table[table.metric == metric].nfe) == [1, 4, 4]
        assert set(table[table.metric == metric].extractor) == {"cnn64"}
    with pytest.raises(ValueError, match="trained without label dropout"):
        r1.field("fp32", guidance)


def test_a_compiled_model_is_scored_looked_at_and_has_a_likelihood(folder, monkeypatch):
    """Compiled code refuses to be differentiated twice, and each other size of batch would be compiled anew."""
    choices = {
        "couple__batch": 150,
        "evaluate__batch": 80,
        "evaluate__likelihood": {"samples": 20, "solver": "euler", "nfe": 4, "probes": 2},
    }
    list(run(tiny(**choices), "check", "features", "base", "couple@r1", "evaluate_base"))
    plain = pd.read_csv(folder / "scores/base/scores.csv")

    usual = torch._dynamo.lookup_backend("aot_eager_decomp_partition")  # but for the machine code
    sizes = set()

    def backend(graph, inputs):
        sizes.update(len(x) for x in inputs if x.shape[1:] == (1, 8, 8))
        return usual(graph, inputs)

    def compiled(params, model, samples, **kind):
        torch.compiler.reset()
        model.network.compile(backend=backend, dynamic=False)
        return Note("compiled")

    for stage, stage_sizes in (("couple@r1", {150}), ("evaluate_base", {80, 40})):
        monkeypatch.setattr(f"flows.stages.{stage.replace('@', '_').split('_')[0]}.set_up", compiled)
        sizes.clear()
        assert "compiled" in notes(run(tiny(**choices, couple__pairs=301), stage))
        assert sizes == stage_sizes
    table = pd.read_csv(folder / "scores/base/scores.csv")
    assert "bits_per_dim" in set(table.metric)
    assert list(table.metric) == list(plain.metric)
    assert table.value.to_numpy() == pytest.approx(plain.value.to_numpy(), rel=1e-3)


def test_likelihood_of_points_is_that_of_their_distribution():
    """Eight Gaussians of deviation 0.2: entropy log 8 + log(2 pi e 0.04), which no model's score can be below."""
    params = points(
        network__width=128,
        network__fourier=4,
        base__train=small(250_000, batch_size=250, lr=3e-3),
        evaluate__likelihood={"samples": 1000, "solver": "rk4", "nfe": 256, "probes": 0},
    )
    list(run(params, "check", "features", "base", "evaluate_base"))
    (row,) = pd.read_csv("scores/base/scores.csv").query("metric == 'nats'").itertuples()
    entropy = torch.log(torch.tensor(8 * 2 * torch.pi * torch.e * 0.2**2)).item()
    assert entropy - 4 * row.std < row.value < entropy + 0.3


@pytest.mark.parametrize(("rows", "null_label"), [(10, None), (11, 10)])
def test_a_teacher_may_know_a_class_more_for_none(rows, null_label, folder):
    saved(folder / "teacher", unet(num_class_embeds=rows), DDPMScheduler())
    guidance = None if null_label is None else {"scale": 1.5, "start": 0.0, "stop": 1.0}
    guided = {"couple__guidance": guidance, "couple__nfe": 4, "couple__pairs": 100}
    list(run(tiny(base__teacher="teacher", conditional=True, **guided), "check", "base", "couple@r1"))
    base = load_model("models/base")
    assert (base.num_classes, base.null_label) == (10, null_label)


def test_a_teacher_of_other_classes_is_refused(folder):
    saved(folder / "teacher", unet(num_class_embeds=7), DDPMScheduler())
    with pytest.raises(ValueError, match=r"teacher has 7 classes, data\.name digits 10"):
        list(run(tiny(base__teacher="teacher", conditional=True), "check", "base"))


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_a_diffusion_model_is_reflowed_into_a_smaller_student(kind, folder):
    saved(folder / "teacher", unet(), DDPMScheduler() if kind == "ddpm" else EDMEulerScheduler())
    student = {"name": "unet", "channels": [8], "layers": 1, "attention": False, "dropout": 0.0, "patch": 1}
    params = tiny(
        base__teacher="teacher",
        couple__nfe=8,
        reflow__train=small(7500),
        distill__train=small(500),
        distill__network=student,
        evaluate__solvers={"euler": [1, 4]},
    )
    said = notes(run(params, *ALL, "evaluate_student@student"))
    assert any("taken as it is" in line for line in said)
    assert "student: starts anew: its network has another architecture than r1's" in said
    base, r1, small_one = (load_model(f"models/{name}") for name in ("base", "r1", "student"))
    assert base.convention.path == r1.convention.path
    assert base.convention.predicts == ("noise" if kind == "ddpm" else "data")
    assert r1.convention.predicts == ("v" if kind == "ddpm" else "data"), "noise prediction knows no data at t = 0"
    assert base.convention.clip == (1.0 if kind == "ddpm" else None)
    assert small_one.network_config == UNet(**{**student, "channels": (8,)})
    assert small_one.convention.predicts == "velocity"
    pairs, _ = open_pairs("couplings/r1")
    torch.testing.assert_close(
        integrate(base.field("fp32"), pairs.x0, uniform_grid(8), SOLVERS["euler"]), pairs.x1, rtol=1e-2, atol=1e-3
    )
    losses = pd.read_csv("curves/r1.csv").loss
    assert losses.iloc[-1] < losses.iloc[0]
    assert read_json(layout.CHECKED)["teacher_sha256"]


def test_dropout_may_change_between_teacher_and_round():
    network = {"name": "unet", "channels": [8, 16], "layers": 1, "attention": False, "dropout": 0.3, "patch": 1}
    params = tiny(
        network=network,
        base__train=small(500),
        reflow__network={**network, "dropout": 0.0, "patch": 1},
        reflow__train=small(100),
    )
    said = notes(run(params, "check", "base", "couple@r1", "reflow@r1"))
    assert "r1: starts from base's weights, in a network that differs" in said
    assert load_model("models/r1").network_config.dropout == 0.0


def test_what_does_not_matter_to_a_teacher_leaves_its_bytes_as_they_are(folder):
    saved(folder / "teacher", unet(), DDPMScheduler())
    made = []
    for lr in (1e-3, 2e-3):
        list(run(tiny(base__teacher="teacher", base__train=small(lr=lr)), "check", "base"))
        made.append({p.name: p.read_bytes() for p in sorted((folder / "models/base").iterdir())})
    assert made[0] == made[1]


def test_what_is_to_be_compiled_and_cannot_be_says_so(monkeypatch):
    monkeypatch.setattr("fmcore.flow.speed.which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile: on needs a C\+\+ compiler"):
        list(run(points(compile="on"), *ALL[:3]))


@pytest.mark.precisions
@pytest.mark.parametrize("conditional", [False, True])
def test_matching_brings_the_students_samples_to_the_data(conditional):
    """From too few and too rough couplings a student learns little; the data's own distribution is not in them."""
    train = small(20_000, batch_size=100)
    plain = tiny(conditional=conditional, distill__ending=REGRESSION, distill__train=train)
    matched = tiny(
        conditional=conditional,
        distill__ending__weight=10.0,
        distill__ending__start=0.25,
        distill__train=train,
    )
    found = []
    list(run(plain, *ALL[:5]))
    for params in (matched, plain):
        list(run(params, "distill@student"))
        samples = load_model("models/student").sample(1000, 1).clamp(-1, 1)
        found.append(energy_distance(samples.flatten(1), params.data.load().x1.flatten(1)[:1000]).value)
    assert found[0] < 0.7 * found[1]
