"""Every choice that params.yaml offers, through the stages themselves: small budgets, real artifacts."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler

from diffusers_teachers import saved, unet
from flows import layout
from flows.events import Note
from flows.stages.training import run_training
from fmcore.disk.files import ArtifactError, read_json
from fmcore.disk.pairs import open_pairs
from fmcore.flow.pixels import dequantise
from fmcore.flow.times import uniform_grid
from fmcore.flow.training import Record, TrainConfig
from fmcore.model import load as load_model
from fmcore.models.networks import UNet
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.points import energy_distance
from stage_runs import ALL, events_of, notes, points, run, small, tiny


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


def test_reflow_on_a_mix_with_refreshed_real_data(monkeypatch):
    params = tiny(
        flip=True,
        couple__inverted=200,
        couple__ema=5000.0,
        base__train=small(ema_halflife_images=[50, 5000]),
        couple__grid={"name": "optimised", "trajectories": 8},
        reflow__mix={"inverted": 0.4, "until": 0.8, "slerp": 0.1, "refresh_images": 5000},
        reflow__drop_longest=0.1,
        reflow__train=small(12_000),
        evaluate__likelihood={"samples": 20, "solver": "rk4", "nfe": 16, "probes": 1},
        evaluate__grids=[{"name": "cosine"}],
    )
    list(run(params, "check", "features", "base", "couple@r1"))
    second = load_model("models/base", ema=5000.0)
    assert second.digest != load_model("models/base").digest
    generated, manifest = open_pairs("couplings/r1")
    assert manifest["teacher"] == {"model": "base", "sha256": second.digest, "ema": 5000.0}
    grid = torch.tensor(manifest["grid"], dtype=torch.float64)
    assert len(grid) == 5
    torch.testing.assert_close(
        integrate(second.field("fp32"), generated.x0, grid, SOLVERS["euler"]), generated.x1, rtol=1e-3, atol=1e-4
    )
    inverted, _ = open_pairs("couplings/r1/inverted")
    data = params.data.load().x1
    assert all((image == data).flatten(1).all(1).any() for image in inverted.x1[:5])
    back = integrate(second.field("fp32"), inverted.x1, grid.flip(0), SOLVERS["euler"])
    torch.testing.assert_close(back, inverted.x0, rtol=1e-3, atol=1e-4)
    seen = list(run(params, "reflow@r1"))
    assert sum(type(e).__name__ == "Progress" and e.what == "invert r1" and e.done == e.total for e in seen) == 1
    whole = load_model("models/r1").digest

    # Killed between two refreshes, it goes on with the inverted data it had.
    checkpoints_at_every_record(monkeypatch)
    killed_at(events_of(params, "reflow@r1"), 10_000)
    again = [e for e in run(params, "reflow@r1") if type(e).__name__ == "Progress"]
    assert load_model("models/r1").digest == whole
    assert min(e.done for e in again if e.what == "train r1") >= 7500
    assert again[0].what == "train r1", "it does not invert again what it had"

    list(run(params, "distill", "evaluate_base", "evaluate_student"))
    table = pd.read_csv("scores/base/scores.csv")
    assert set(table[table.metric == "straightness"].grid) == {"cosine"}
    (bits,) = table[table.metric == "bits_per_dim"].itertuples()
    assert (bits.solver, bits.nfe, bits.n_samples) == ("rk4", 16, 20)
    assert 0 < bits.value < 20
    student = pd.read_csv("scores/student/scores.csv")
    assert "bits_per_dim" not in set(student.metric)
    assert set(student.grid) == {"uniform"}


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


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_a_diffusion_model_is_reflowed_into_a_smaller_student(kind, folder):
    saved(folder / "teacher", unet(), DDPMScheduler() if kind == "ddpm" else EDMEulerScheduler())
    student = {"name": "unet", "channels": [8], "layers": 1, "attention": False, "dropout": 0.0}
    params = tiny(
        base__teacher="teacher",
        couple__nfe=8,
        reflow__train=small(7500),
        distill__train=small(500),
        distill__network=student,
        evaluate__solvers={"euler": [1, 4]},
    )
    said = notes(run(params, *ALL, "evaluate_student"))
    assert any("taken as it is" in line for line in said)
    assert "student: starts anew: its network has another architecture than its teacher's" in said
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
    network = {"name": "unet", "channels": [8, 16], "layers": 1, "attention": False, "dropout": 0.3}
    params = tiny(
        network=network,
        base__train=small(500),
        reflow__network={**network, "dropout": 0.0},
        reflow__train=small(100),
    )
    said = notes(run(params, "check", "base", "couple@r1", "reflow@r1"))
    assert "r1: starts from its teacher's weights, in a network that differs" in said
    assert load_model("models/r1").network_config.dropout == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base__teacher": "nowhere"}, "nowhere: expected a diffusers model"),
        (
            {"base__teacher": "teacher", "data": {"name": "mnist", "root": "none", "download": True}},
            r"base.teacher: teacher makes samples of shape \(1, 8, 8\), but those of data.name mnist have",
        ),
        (
            {"base__teacher": "teacher", "conditional": True},
            "conditional: true, but base.teacher teacher has no classes",
        ),
        (
            {
                "reflow__distance": {
                    **{"name": "lpips", "backbone": "none.pth", "linear": "none.pth", "size": 32},
                    **{"huber": True, "over_noise": False, "scale": 0.001},
                }
            },
            "reflow.distance: .*none.pth",
        ),
    ],
)
def test_a_mistake_is_found_by_the_first_stage(change, message, folder, monkeypatch):
    saved(folder / "teacher", unet(), DDPMScheduler())
    params = tiny(**change)
    monkeypatch.setattr(type(params.data), "check", lambda self: "")
    with pytest.raises(ValueError, match=message):
        list(run(params, "check"))


def test_couplings_killed_while_data_is_inverted_keep_what_was_generated(folder):
    params = tiny(
        couple__inverted=50, couple__grid={"name": "optimised", "trajectories": 4}, base__train=small(500)
    )
    list(run(params, "check", "base", "couple@r1"))
    whole = {p.name: p.read_bytes() for p in sorted((folder / "couplings/r1").rglob("*.safetensors"))}
    stopped = events_of(params, "couple@r1")
    for event in stopped:
        if type(event).__name__ == "Progress" and event.what == "invert r1":
            break
    stopped.close()
    said = notes(run(params, "couple@r1"))
    assert "couple r1: 300 of 300 pairs are there already" in said
    assert {p.name: p.read_bytes() for p in sorted((folder / "couplings/r1").rglob("*.safetensors"))} == whole


def test_a_network_that_cannot_be_built_is_found_by_the_first_stage():
    deep = {"name": "unet", "channels": [8, 8, 8, 8, 8], "layers": 1, "attention": False, "dropout": 0.0}
    for section in ("reflow", "distill"):
        with pytest.raises(
            ValueError, match=rf"^{section}.network: unet with 5 levels needs sides divisible by 16"
        ):
            list(run(tiny(**{f"{section}__network": deep}), "check"))


def test_what_does_not_matter_to_a_teacher_leaves_its_bytes_as_they_are(folder):
    saved(folder / "teacher", unet(), DDPMScheduler())
    made = []
    for lr in (1e-3, 2e-3):
        list(run(tiny(base__teacher="teacher", base__train=small(lr=lr)), "check", "base"))
        made.append({p.name: p.read_bytes() for p in sorted((folder / "models/base").iterdir())})
    assert made[0] == made[1]


def test_a_refreshed_training_whose_inverted_data_is_lost_says_so(folder, monkeypatch):
    checkpoints_at_every_record(monkeypatch)
    params = tiny(
        couple__inverted=20,
        reflow__mix={"inverted": 0.5, "until": 1.0, "slerp": 0.0, "refresh_images": 5000},
        reflow__train=small(15_000),
    )
    list(run(params, "check", "base", "couple@r1"))
    killed_at(events_of(params, "reflow@r1"), 10_000)
    for path in (folder / "work" / "reflow-r1").glob("*/inverted-*"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"inverted-0000000100.safetensors is missing; remove"):
        list(run(params, "reflow@r1"))


def checkpoints_at_every_record(monkeypatch):
    monkeypatch.setattr("flows.stages.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("flows.stages.training.CHECKPOINT_SHARE", float("inf"))


def killed_at(events, images):
    """Stops a training, as a signal would, once it has seen that many images."""
    for event in events:
        if type(event).__name__ == "Progress" and event.what == "train r1" and event.done >= images:
            break
    events.close()


def test_couplings_that_do_not_fit_into_memory_stay_on_disk_and_train_the_same(monkeypatch):
    params = points(couple__batch="auto", reflow__drop_longest=0.1)
    said = notes(run(params, *ALL[:5]))
    assert "couple r1: 512 pairs at a time" in said
    assert "cpu: float32, not compiled (would not pay: 1.1e+09 operations)" in said
    assert not any("stay on disk" in note for note in said)
    weights = Path("models/r1/model.safetensors").read_bytes()
    monkeypatch.setattr("flows.stages.on_couplings.room", lambda device: 1000)
    assert "r1: 0.0 GB of pairs stay on disk and are read as they are drawn" in notes(run(params, "reflow@r1"))
    assert Path("models/r1/model.safetensors").read_bytes() == weights


def test_what_is_to_be_compiled_and_cannot_be_says_so(monkeypatch):
    monkeypatch.setattr("fmcore.flow.speed.which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile: on needs a C\+\+ compiler"):
        list(run(points(compile="on"), *ALL[:3]))


@pytest.mark.precisions
@pytest.mark.parametrize("conditional", [False, True])
def test_matching_brings_the_students_samples_to_the_data(conditional):
    """From too few and too rough couplings a student learns little; the data's own distribution is not in them."""
    plain = tiny(conditional=conditional, distill__match=None, distill__train=small(20_000, batch_size=100))
    found = {}
    list(run(plain, *ALL[:5]))
    for match in (None, {"weight": 200.0, "start": 0.25}):
        params = tiny(conditional=conditional, distill__match=match, distill__train=small(20_000, batch_size=100))
        list(run(params, "distill"))
        samples = load_model("models/student").sample(1000, 1)
        found[match is None] = energy_distance(samples.flatten(1), params.data.load().x1.flatten(1)[:1000]).value
    assert found[False] < 0.7 * found[True]


@pytest.mark.precisions
def test_couplings_of_8_bit_samples_take_three_bytes_a_number_and_teach_as_well():
    found = {}
    for dtype in ("float32", "uint8"):
        params = tiny(couple__dtype=dtype, couple__inverted=50, distill__match=None)
        list(run(params, *ALL[:6]))
        (x0, x1, _), _ = open_pairs("couplings/r1")
        real = open_pairs("couplings/r1/inverted")[0][:2]
        found[dtype] = x0, x1, real, load_model("models/student").sample(50, 1)
    x0, x1, (back, data), samples = found["uint8"]
    assert (x0.dtype, x1.dtype, back.dtype, data.dtype) == (*[torch.float16, torch.uint8] * 2,)
    torch.testing.assert_close(dequantise(x1), found["float32"][1].clamp(-1, 1), rtol=0, atol=0.02)
    torch.testing.assert_close(dequantise(data), found["float32"][2][1], rtol=0, atol=0.005)
    apart = samples.clamp(-1, 1) - found["float32"][3].clamp(-1, 1)  # pixels end there
    assert float(apart.abs().mean()) < 0.1
    bytes_of = sum(shard.stat().st_size for shard in Path("couplings/r1").glob("pairs-*.safetensors"))
    assert bytes_of < 300 * 64 * 3 + 1000


def test_points_have_no_8_bit_samples():
    with pytest.raises(ValueError, match=r"couple\.dtype: expected float32 or float16 for points, got uint8"):
        points(couple__dtype="uint8")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, range(2, 1000, 2)), (0.05, range(2, 1000, 2)), (0.5, range(2, 1000, 4)), (60, range(2, 1000, 86))],
)
def test_checkpoints_that_take_long_are_rarer(seconds, expected, monkeypatch):
    """Records come every 7 seconds, checkpoints after 10, so as to cost two per cent, or after ten minutes."""
    now, at = [0.0], []

    def records(state, objective, config, **options):
        for record in range(1, 1000):
            now[0] += 7.0
            state.step = 50 * record
            yield Record(state.step, state.step, 1.0, 1.0, 1e-3)

    def save(state, work):
        at.append(state.step // 50)
        now[0] += seconds

    monkeypatch.setattr("flows.stages.training.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("flows.stages.training.train", records)
    monkeypatch.setattr(
        "flows.stages.training.checkpoint", SimpleNamespace(save=save, restore=lambda state, work: [])
    )
    state, config = SimpleNamespace(step=0), TrainConfig(images=100_000, batch_size=1, lr=1e-3)
    list(run_training("base", Path(), state, None, config, 0))
    assert at == list(expected)
