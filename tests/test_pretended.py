"""What is meant for a GPU, run on one that is not there: nothing mixes devices, and nothing waits unasked."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from itertools import cycle
from math import isfinite
from operator import add

import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler

from benchmarks import gpu
from benchmarks.on_gpu import correctness, loops, speed_of_training
from diffusers_teachers import saved, unet
from fmcore.disk.pairs import open_pairs
from fmcore.endings.matched import Matched
from fmcore.endings.spaces import Hidden, Pixels, embedding
from fmcore.endings.target import target_of
from fmcore.flow.couplings import (
    Flipped,
    Independent,
    LabelDropout,
    MinibatchOT,
    Mixture,
    Pairs,
    Sharded,
    Slerped,
    Stored,
)
from fmcore.flow.fields import Convention, Guidance, guided, network_field
from fmcore.flow.losses import DISTANCES, WEIGHTINGS
from fmcore.flow.paths import LINEAR, PATHS, Discrete
from fmcore.flow.times import TIMES, Uniform, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.folder import Trained
from fmcore.models.networks import MLP, UNet, initialised
from fmcore.ode.reflow import generate_pairs, invert_data
from fmcore.ode.solvers import SOLVERS, solve
from fmcore.score.extractors import adopt
from fmcore.score.reference import reference_parts
from fmcore.score.scoring import ImageScorer
from pretended import DEVICE, There, cuda
from stage_runs import REGRESSION, points, run, small, tiny

STAGES = ("check", "features", "base", "couple@r1", "reflow@r1", "distill@student")
SCORES = ("evaluate_base", "evaluate@r1", "evaluate_student@student", "evaluate_pairs@r1")
CONFIG = TrainConfig(images=48, batch_size=8, lr=1e-3, ema_halflife_images=(10.0, 20.0))


def test_a_source_as_long_as_the_data_is_paired_at_random():
    x = torch.arange(64.0)[:, None]
    with cuda():
        pairs = Independent(x.to(DEVICE), source=x.to(DEVICE))(500, torch.Generator(DEVICE).manual_seed(3))
        alike = (pairs.x0.cpu() == pairs.x1.cpu()).float().mean()
    assert alike < 0.1


def on_device(params):
    return params.model_copy(update={"device": "cuda"})


def images(count=40, device=DEVICE, **options):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=g)
    return Independent(x.to(device), (torch.arange(count) % 3).to(device), **options)


def stored(device=DEVICE):
    g = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 40, 1, 8, 8, generator=g).half()
    return Pairs(x0.to(device), x1.to(device), (torch.arange(40) % 3).to(device))


def network(device=DEVICE, config=None):
    """With weights everywhere: new networks answer 0, and so would any device."""
    made = initialised(config or MLP(width=16, depth=1), (1, 8, 8), 4, 0)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return made.to(device)


def test_it_refuses_what_a_gpu_refuses():
    before = patched()
    with cuda():
        assert patched() != before
        x, y = torch.ones(2, device="cuda"), torch.ones(2)
        for mixed in (lambda: x + y, lambda: y.add_(x.sum()), lambda: torch.stack([x.sum(), y.sum()])):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()
        for picked in (lambda: y[torch.zeros(1, dtype=torch.long, device="cuda")], lambda: torch.histogram(x, 3)):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                picked()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, generator=torch.Generator(), device="cuda")
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert isinstance(x[torch.tensor([1])] * torch.tensor(2.0), There)
    assert patched() == before


def patched():
    return torch.cuda.is_available, torch.Generator, torch.Event, ThreadPoolExecutor.submit


def test_it_counts_what_is_waited_for():
    with cuda() as waits:
        x = torch.arange(3.0, device="cuda")
        waits.clear()
        x[x > 1], x.sum().item(), x.cpu(), float(x[0]), bool(x.any()), x.tolist(), torch.ones(3).to("cuda")
        assert len(waits) == 7
        torch.empty(3).pin_memory().copy_(x, non_blocking=True)
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        x.to("cuda"), x.double(), x.clamp_(0, 1)
        assert len(waits) == 7


COUPLINGS = {
    "independent": images,
    "stored": lambda: Stored(stored()),
    "flipped": lambda: Flipped(images()),
    "slerped": lambda: Slerped(Stored(stored()), 0.3),
    "dropped": lambda: LabelDropout(images(), 0.5, 3),
    "mixed": lambda: Mixture((Stored(stored()), Slerped(Stored(stored()), 0.1)), (0.5, 0.5), 0.7),
}


@pytest.mark.precisions
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_waits_for_its_records_only(coupling, accumulate):
    config = TrainConfig(**{**vars(CONFIG), "accumulate": accumulate})
    with cuda() as waits:
        objective = flow_objective(
            COUPLINGS[coupling](), LINEAR, Uniform(), DISTANCES["squared"](), batch_size=8, precision="auto"
        )
        state = new_state(network(), config)
        waits.clear()
        records = list(train(state, objective, config, seed=0, every=4))
        assert [record.step for record in records] == [4, 6]
        assert len(waits) == 2 * len(records), "of the loss and of the gradient"


@pytest.mark.precisions
@pytest.mark.parametrize("path", [*PATHS])
def test_every_path_trains_without_a_wait(path):
    chosen = Discrete((0.9, 0.5, 0.1)) if path == "discrete" else PATHS[path]()
    kinds = zip(cycle(TIMES.values()), cycle(("squared", "pseudo_huber")), WEIGHTINGS, strict=False)
    with cuda() as waits:
        chosen(torch.zeros(1, device=DEVICE))  # a table is brought there once
        for times, distance, weighting in kinds:
            objective = flow_objective(
                images(),
                chosen,
                times(),
                DISTANCES[distance](),
                batch_size=8,
                precision="auto",
                weighting=weighting,
            )
            state = new_state(network(), CONFIG)
            waits.clear()
            list(train(state, objective, CONFIG, seed=0, stop=2))
            assert len(waits) == 2, "of the one record"


@pytest.mark.precisions
def test_a_student_is_matched_without_a_wait():
    with cuda() as waits:
        spaces = (Pixels(), Hidden("block1", 0.5))
        base = Trained(network().eval(), MLP(width=16, depth=1), (1, 8, 8), 4, {}, "")
        ending = Matched(DISTANCES["squared"](), 0.5, 0.0, 1.0, 4, spaces)
        target = target_of(embedding(spaces, base), images(), flip=True, clip=True, device=DEVICE)
        objective = ending.objective(
            Stored(stored()), target, batch_size=8, precision="auto", convention=Convention(LINEAR)
        )
        state = new_state(network(), CONFIG)
        waits.clear()
        list(train(state, objective, CONFIG, seed=0))
        assert len(waits) == 2


@pytest.mark.precisions
@pytest.mark.parametrize("kind", ["fresh", "sharded", "ot"])
def test_what_is_slow_to_draw_is_drawn_in_a_thread(kind):
    with cuda():
        coupling = {
            "fresh": images(device="cpu", slow=True),
            "sharded": Sharded((stored("cpu"), stored("cpu"))),
            "ot": MinibatchOT(images()),
        }[kind]
        objective = flow_objective(
            coupling, LINEAR, Uniform(), DISTANCES["squared"](), batch_size=8, precision="auto"
        )
        threads = set()

        def draw(generator, progress):
            threads.add(threading.current_thread())
            return objective.draw(generator, progress)

        seen = objective._replace(draw=draw)
        records = list(train(new_state(network(), CONFIG), seen, CONFIG, seed=0, every=1))
    assert len(records) == CONFIG.steps
    assert all(isfinite(record.loss) for record in records)
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", ["linear", "vp"])
def test_sampling_waits_for_nothing_and_draws_what_the_host_draws(solver, path):
    """In float32: the pretended device has no bfloat16."""
    config = UNet(channels=(8,), layers=1)
    with cuda() as waits:
        ends = {}
        for device in ("cpu", "cuda"):
            there = network(device, config)
            field = guided(network_field(there, "fp32", Convention(PATHS[path]())), Guidance(2.0), 3)
            x0, label = stored(device).x0.float(), stored(device).label
            waits.clear()
            ends[device] = solve(field, x0, uniform_grid(4), SOLVERS[solver], label)
            assert not waits
        assert torch.equal(ends["cuda"].cpu(), ends["cpu"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_pairs_do_not_depend_on_the_device_they_are_asked_for(dtype):
    made = {}
    options = {"grid": uniform_grid(2), "solver": SOLVERS["heun"], "batch": 16, "dtype": dtype}
    with cuda() as waits:
        for device in ("cpu", "cuda"):
            there = network(device)
            field = network_field(there, "fp32")
            waits.clear()
            parts = list(
                generate_pairs(
                    field, 40, shape=(1, 8, 8), seed=1, labels=torch.arange(3), device=device, **options
                )
            )
            assert not waits, "the host goes on while the device computes"
            real = images(device="cpu")
            inverted = list(invert_data(field, real.x1, label=real.label, device=device, **options))
            assert len(waits) == (len(inverted) if device == "cuda" else 0), "for the noise, once a batch"
            parts += inverted
            made[device] = [torch.cat(column) for column in zip(*parts, strict=True)]
        for here, there in zip(made["cpu"], made["cuda"], strict=True):
            assert there.device.type == "cpu"
            assert torch.equal(here, there)


def test_scoring_waits_for_nothing_until_all_is_scored(tmp_path):
    shape, metrics = (1, 8, 8), ["kid", "precision_recall", "density_coverage"]
    with cuda() as waits:
        pixels = images(count=200).x1
        extractor = adopt("random", tmp_path, shape, [pixels], DEVICE)
        reference = reduce(add, reference_parts(extractor, [pixels], len(pixels)))
        scorer = ImageScorer(100, extractor, reference, metrics)
        waits.clear()
        for batch in torch.split(pixels[:100], 30):
            scorer.add(batch)
        assert not waits
        assert all(isfinite(score.estimate.value) for score in scorer.scores())
        assert waits


BRIEF = {f"{section}__train": small(100) for section in ("features", "base", "reflow", "distill")}
BRIEF |= {"couple__pairs": 100, "couple__batch": 50}
VARIANTS = {
    "conditional": {
        "conditional": True,
        "flip": True,
        "base__label_dropout": 0.2,
        "base__coupling": "minibatch_ot",
        "couple__guidance": {"scale": 1.5, "start": 0.1, "stop": 0.9},
        "couple__inverted": 40,
        "couple__batch": "auto",
        "couple__dtype": "uint8",
        "couple__grid": {"name": "optimised", "trajectories": 4},
        "reflow__mix": {"inverted": 0.5, "until": 0.9, "slerp": 0.1, "refresh_images": 50},
        "reflow__drop_longest": 0.1,
        "evaluate__metrics": [
            *("kid", "precision_recall", "density_coverage", "frechet_infinity", "inception_score")
        ],
        "evaluate__dopri5": {"rtol": 1e-2, "atol": 1e-2},
        "evaluate__solvers": {name: {"euler": [1, 2], "heun": [3]}.get(name, [4]) for name in SOLVERS},
        "evaluate__likelihood": {"samples": 8, "solver": "euler", "nfe": 2, "probes": 1},
    },
    "teacher": {"base__teacher": "teacher", "features__extractor": "random"},
    "another path": {
        "base__path": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
        "features__extractor": "pixels",
        "distill__ending": REGRESSION,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stages_run_on_a_gpu(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    saved(tmp_path / "teacher", unet(), DDPMScheduler())
    changes = {**BRIEF, **VARIANTS[variant]}
    params = on_device(tiny(**changes))
    with cuda():
        list(run(params, *STAGES, *SCORES))
    for name in ("base", "r1", "student", "couplings-r1"):
        assert pd.read_csv(f"scores/{name}/scores.csv").value.map(isfinite).all()
    pairs, manifest = open_pairs("couplings/r1")
    assert pairs.x0.device.type == "cpu"
    # The grid's search and the choice of the batch evaluate too, and do not count.
    guided = 3 if params.couple.guidance else 0
    assert manifest["network_evaluations"] <= 4 + guided


@pytest.mark.slow
def test_points_and_what_has_no_room_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with cuda(free=2000):
        said = list(run(on_device(points(**BRIEF)), *STAGES, *SCORES))
    assert any("stay on disk" in getattr(event, "text", "") for event in said)


@pytest.mark.native
@pytest.mark.slow
def test_the_gpu_benchmark_runs_all_its_parts(tmp_path, monkeypatch):
    out = tmp_path / "gpu.md"
    monkeypatch.setattr(gpu, "QUICK", replace(gpu.QUICK, train_large=(4,), pairs=(4,), steps=1))
    # torchcfm's loader asks the driver for its devices
    monkeypatch.setattr(speed_of_training, "find_spec", lambda module: None)
    with cuda():
        for module in (correctness, loops, speed_of_training):
            monkeypatch.setattr(module, "Generator", torch.Generator)
        assert gpu.main(["--quick", "--out", str(out)]) == 0
    (found,) = json.loads(out.with_suffix(".json").read_text()).values()
    assert {name: record["status"] for name, record in found.items()} == dict.fromkeys(
        (part.name for part in gpu.parts(gpu.QUICK)), "done"
    )
