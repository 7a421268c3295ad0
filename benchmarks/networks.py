"""Networks after equal CPU-seconds: which one is nearest to the data, on one thread.

    python benchmarks/networks.py digits|mnist|series [--seconds 120] [--seeds 1] [--out FILE]

Each candidate trains a flow with the recipe of the preset, its learning rate one of two and its budget what the
seconds allow at the rate of its first steps. 5,000 samples by ab2 at 16 evaluations are scored: digits and MNIST
(from data/mnist) by the classifier of their preset, 50,000 images long; series (noisy waves of two channels and 32
steps, made here) by the energy distance to others. `dit` is diffusers' DiTTransformer2DModel.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from math import pi
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine
from flows.params.preset import overlaid
from flows.params.reading import validate
from fmcore.flow.couplings import Independent
from fmcore.flow.fields import network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.pixels import floats, quantise
from fmcore.flow.rng import generator
from fmcore.flow.speed import keep_freed_memory, prepare
from fmcore.flow.times import Uniform, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, take_average, train
from fmcore.models.networks import MLP, UNet, UNet1D
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.extractors import load_extractor, save_extractor
from fmcore.score.feature_net import fitting
from fmcore.score.frechet import frechet_distance, stats
from fmcore.score.points import energy_distance

SAMPLES, NFE, PART, BATCH = 5000, 16, 500, 64
RATES = (1e-3, 2e-3)
Build = Callable[[tuple[int, ...]], nn.Module]


class Transformer(nn.Module):
    """A DiT (Peebles and Xie, arXiv:2212.09748) of diffusers, told the time and one class for all."""

    def __init__(self, shape: tuple[int, ...], patch: int, width: int, depth: int) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        heads = width // 32
        self.dit = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=32, in_channels=shape[0], num_layers=depth,
            norm_num_groups=1, sample_size=shape[1], patch_size=patch, num_embeds_ada_norm=1000,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        none = torch.zeros(len(x), dtype=torch.long, device=x.device)
        v: Tensor = self.dit(x, 1000 * t, none, return_dict=False)[0]
        return v


CANDIDATES: dict[str, dict[str, Build]] = {
    "digits": {
        "mlp 512x3": lambda shape: MLP(512, 3).build(shape, None),
        "unet 32,64": lambda shape: UNet((32, 64)).build(shape, None),
        "dit patch 1, 128x4": lambda shape: Transformer(shape, 1, 128, 4),
        "dit patch 2, 128x4": lambda shape: Transformer(shape, 2, 128, 4),
        "dit patch 2, 256x6": lambda shape: Transformer(shape, 2, 256, 6),
    },
    "mnist": {
        "unet 32,64 patch 2": lambda shape: UNet((32, 64), patch=2).build(shape, None),
        "dit patch 4, 128x4": lambda shape: Transformer(shape, 4, 128, 4),
        "dit patch 4, 256x6": lambda shape: Transformer(shape, 4, 256, 6),
    },
    "series": {
        "mlp 512x3": lambda shape: MLP(512, 3).build(shape, None),
        "unet1d 32,64,128": lambda shape: UNet1D((32, 64, 128)).build(shape, None),
        "unet1d 64,128": lambda shape: UNet1D((64, 128)).build(shape, None),
    },
}


def waves(count: int, seed: int) -> Tensor:
    """(N, 2, 32) float32: two sines of one frequency and random phases, the second rising, and a little noise."""
    g = generator(seed, "benchmarks/waves")
    frequency, phase = 1 + 3 * torch.rand(count, 1, generator=g), 2 * pi * torch.rand(count, 2, generator=g)
    s = torch.linspace(0, 1, 32)
    first = (2 * pi * frequency * s + phase[:, :1]).sin()
    second = (2 * pi * frequency * s + phase[:, 1:]).sin() * s
    x = torch.stack([first, second], 1) + 0.05 * torch.randn(count, 2, 32, generator=g)
    return (x - x.mean((0, 2), keepdim=True)) / x.std((0, 2), keepdim=True)


def images(name: str, folder: Path) -> tuple[Tensor, Callable[[Tensor], float]]:
    """What is trained on, and the distance of samples to it."""
    params = validate(overlaid(name), f"presets/{name}.yaml")
    data, section = params.data.load(), params.features.train
    pixels = quantise(data.reference) if data.reference.is_floating_point() else data.reference
    made = fitting("classifier", pixels, data.label, data.num_classes, batch_size=section.batch_size, seed=0)
    state, config = new_state(made.network, section), TrainConfig(50_000, section.batch_size, section.lr, 0.0)
    for _ in train(state, made.objective, config, seed=0):
        pass
    save_extractor(folder, "classifier", made, pixels)
    extractor = load_extractor(folder)
    real = stats(torch.cat([extractor(part) for part in torch.split(pixels, PART)]))

    def distance(x1: Tensor) -> float:
        return frechet_distance(
            stats(torch.cat([extractor(quantise(part)) for part in torch.split(x1, PART)])), real
        )

    return floats(data.x1), distance


def series(name: str, folder: Path) -> tuple[Tensor, Callable[[Tensor], float]]:
    """As `images`."""
    others = waves(SAMPLES, 1).flatten(1)
    return waves(20_000, 0), lambda x1: energy_distance(x1.flatten(1), others).value


def trained(build: Build, x1: Tensor, lr: float, seconds: float, seed: int) -> tuple[nn.Module, int]:
    """The averaged network after that many CPU-seconds, and how many images it saw."""

    def of(count: int) -> TrainConfig:
        return TrainConfig(count, BATCH, lr, 0.05, warmup_images=2000, ema_halflife_images=(count / 40,))

    objective = flow_objective(Independent(x1), LINEAR, Uniform(), Squared(), batch_size=BATCH, precision="auto")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(tuple(x1.shape[1:]))
    prepare(network, "auto", "off", work=0.0, training=True)
    warm, rate = new_state(network, of(10**6)), 0.0
    for record in train(warm, objective, of(10**6), seed=seed, every=10, stop=40):
        if record.step == 10:
            start = time.process_time()
        rate = 30 * BATCH / max(1e-9, time.process_time() - start)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(tuple(x1.shape[1:]))
    prepare(network, "auto", "off", work=0.0, training=True)
    config = of(int(seconds * rate) // BATCH * BATCH)
    state = new_state(network, config)
    for _ in train(state, objective, config, seed=seed):
        pass
    return take_average(state), config.images


def sampled(network: nn.Module, shape: tuple[int, ...], seed: int) -> Tensor:
    """(5000, *shape) samples."""
    field, g = network_field(network, "auto"), generator(seed, "benchmarks/networks")
    solver, grid = SOLVERS["ab2"], uniform_grid(NFE)
    with torch.inference_mode():
        parts = [torch.randn(PART, *shape, generator=g) for _ in range(SAMPLES // PART)]
        return torch.cat([integrate(field, x0, grid, solver) for x0 in parts])


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=list(CANDIDATES))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        x1, distance = (series if args.data == "series" else images)(args.data, Path(folder))
    lines = ["| network | weights | images | lr | distance |", "| --- " * 5 + "|"]
    for name, build in CANDIDATES[args.data].items():
        for lr in RATES:
            found, seen = [], []
            for seed in range(args.seeds):
                network, count = trained(build, x1, lr, args.seconds, seed)
                found.append(distance(sampled(network, tuple(x1.shape[1:]), seed)))
                seen.append(count)
            weights = sum(p.numel() for p in network.parameters()) / 1e6
            mean = statistics.mean(found)
            lines.append(f"| {name} | {weights:.2f} M | {statistics.mean(seen):,.0f} | {lr:g} | {mean:.3g} |")
            print(lines[-1], flush=True)
    lines.append(f"\n{args.data}, {args.seconds:g} CPU-seconds, {args.seeds} seeds. {machine.kind()}")
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
