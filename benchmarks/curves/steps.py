"""What training steps, samples and the rounds of params.yaml cost."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.curves.timing import median, of_whole
from flows.params.reading import read
from fmcore.flow import rng
from fmcore.flow.couplings import Independent
from fmcore.flow.fields import network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.speed import flops, prepare
from fmcore.flow.times import Uniform, uniform_grid
from fmcore.flow.training import Objective, TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import Network, UNet, initialised
from fmcore.ode.solvers import SOLVERS, solve

ROOT = Path(__file__).parents[2]
EULER = SOLVERS["euler"]


def objective_of(shape: tuple[int, ...], batch: int) -> Objective:
    """Flow matching on images; speed does not depend on what they show."""
    data = torch.rand(2048, *shape, generator=rng.generator(0, "images")) * 2 - 1
    return flow_objective(Independent(data), LINEAR, Uniform(), Squared(), batch_size=batch, precision="auto")


def trained(config: Network, shape: tuple[int, ...]) -> nn.Module:
    """A network as the stages hand it to training; compilation is left out, which takes minutes."""
    network = initialised(config, shape, None, 0)
    prepare(network, "auto", "off", work=0, training=True)
    return network


def config_of(batch: int) -> TrainConfig:
    """Training with an average of the weights and a norm to clip at."""
    return TrainConfig(images=10**9, batch_size=batch, lr=1e-3, ema_halflife_images=(50_000.0,))


def step_cost(what: str, config: Network, shape: tuple[int, ...], batch: int, repeats: int) -> list[str]:
    """A line of the table: what a training step costs an image."""
    network, settings = trained(config, shape), config_of(batch)
    work = 3 * flops(network, shape, None)
    records = train(new_state(network, settings), objective_of(shape, batch), settings, seed=0, every=1)
    seconds = median(lambda: next(records), repeats) / batch
    cells = [f"{1e3 * seconds:.3f}", f"{1 / seconds:,.0f}", f"{work / 1e6:,.0f}", f"{work / seconds / 1e9:,.0f}"]
    return [what, "x".join(map(str, shape)), str(batch), *cells]


def step_curve(quick: bool, repeats: int) -> list[list[str]]:
    """Training against image size, channels and batch size, one of them at a time."""
    plain = UNet(channels=(32, 64), layers=1)
    sizes, batches = ((8, 16), (16, 32)) if quick else ((8, 16, 32), (16, 64, 256))
    batch = batches[1]
    widths = ((16, 32), (32, 64)) if quick else ((16, 32), (32, 64), (64, 128))
    return [
        *(step_cost(f"size {n}", plain, (3, n, n), batch, repeats) for n in sizes),
        *(step_cost(f"channels {a}, {b}", UNet((a, b), 1), (3, 16, 16), batch, repeats) for a, b in widths),
        *(step_cost(f"batch {n}", plain, (3, 16, 16), n, repeats) for n in batches),
    ]


def sampling_curve(
    name: str, config: Network, shape: tuple[int, ...], batch: int, largest: int, repeats: int
) -> list[str]:
    """A line of the table: seconds against NFE, and the straight line through them."""
    network = initialised(config, shape, None, 0).eval()
    prepare(network, "auto", "off", work=0, training=False)
    field, x0 = network_field(network, "auto"), torch.randn(batch, *shape)
    nfes = [nfe for nfe in (1, 2, 4, 8, 16, 32, 64) if nfe <= largest]
    seconds = np.array([median(lambda n=nfe: solve(field, x0, uniform_grid(n), EULER), repeats) for nfe in nfes])
    # Relative errors are fitted, or the largest NFE alone would decide.
    slope, fixed = np.polyfit(nfes, seconds, 1, w=1 / seconds)
    off = np.abs((slope * np.array(nfes) + fixed) / seconds - 1).max()
    cells = [f"{1e3 * s:.1f}" for s in seconds] + ["not run"] * (7 - len(nfes))
    return [name, str(batch), *cells, f"{1e3 * slope:.2f}", f"{1e3 * fixed:.2f}", f"{off:.0%}"]


def round_costs() -> list[list[str]]:
    """Forward passes of each model of params.yaml; a training step on an image counts as three."""
    wanted = read(ROOT / "params.yaml")
    passes: dict[str, tuple[int, int]] = {}
    if wanted.base.teacher is None:
        passes["base"] = (3 * wanted.base.train.images, 0)
    for name in wanted.reflow.rounds:
        section = wanted.couple_of(name)
        pairs = (section.pairs + section.inverted) * section.nfe
        passes[name] = (3 * wanted.train_of(name).images, pairs)
    for name in wanted.students:
        passes[name] = (3 * wanted.distill_of(name).train.images, 0)
    total = sum(map(sum, passes.values()))
    return [
        [name, *(f"{n / 1e6:.2f}" for n in (learning, pairs, learning + pairs)), of_whole(learning + pairs, total)]
        for name, (learning, pairs) in passes.items()
    ]
