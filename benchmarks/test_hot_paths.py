"""Timings of the hot paths, to compare one version of the code with another.

    pytest benchmarks --benchmark-only [--benchmark-save=NAME] [--benchmark-compare]

The repository's own `pytest` does not collect them, and the checks of shapes that tests/ switches on stay off.
`OMP_NUM_THREADS` sets the threads. The files of --benchmark-save and --benchmark-json name the host.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from fmcore.disk.pairs import map_pairs, open_pairs, seal_pairs, write_shard
from fmcore.flow import ema, rng
from fmcore.flow.couplings import Independent, MinibatchOT, Pairs, Sharded, Stored
from fmcore.flow.fields import network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.speed import keep_freed_memory, prepare
from fmcore.flow.times import Uniform, UShaped, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import MLP, Network, UNet, initialised
from fmcore.ode.reflow import generate_pairs
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.frechet import frechet_distance, stats
from fmcore.score.points import sliced_wasserstein

SHAPE, CIFAR = (1, 8, 8), (3, 32, 32)
NETWORKS: dict[str, Network] = {"mlp": MLP(width=512, depth=3), "unet": UNet(channels=(32, 64), layers=1)}
both = pytest.mark.parametrize("name", NETWORKS)
group = pytest.mark.benchmark


@pytest.fixture(autouse=True, scope="module")
def as_stages_run() -> None:
    """Memory is kept as the stages of the pipeline keep it, and no shapes are checked."""
    if hasattr(integrate, "__wrapped__"):
        pytest.skip("tests/conftest.py is loaded, and its checks take time: run benchmarks/ alone")
    keep_freed_memory()


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Callable[[Callable[[], object]], None]:
    """Times some work after two turns that do not count."""

    def measured(work: Callable[[], object]) -> None:
        work()
        work()
        benchmark(work)

    return measured


def images(count: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Images to work on; speed does not depend on what they show."""
    return torch.rand(count, *shape, generator=rng.generator(0, "images")) * 2 - 1


def network_of(name: str, precision: str, *, training: bool) -> nn.Module:
    """A network as the stages prepare it, but for compilation."""
    network = initialised(NETWORKS[name], SHAPE, None, 0).train(training)
    prepare(network, precision, "off", work=0, training=training)
    return network


def thousand() -> Pairs:
    """Pairs of CIFAR-10's size in halves, a shard of them."""
    half = images(1000, CIFAR).half()
    return Pairs(half, half.flip(0))


def store(folder: Path) -> None:
    """Writes four such shards."""
    pairs = thousand()
    seal_pairs(folder, [write_shard(folder, 1000 * k, [pairs]) for k in range(4)], {})


@group(group="training step")
@both
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_training_step(measure: Callable[..., None], name: str, precision: str) -> None:
    """One step of 256 images."""
    config = TrainConfig(images=10**9, batch_size=256, lr=1e-3, ema_halflife_images=(50_000.0,))
    objective = flow_objective(
        Independent(images(4096)), LINEAR, Uniform(), Squared(), batch_size=256, precision=precision
    )
    records: Iterator[object] = train(
        new_state(network_of(name, precision, training=True), config), objective, config, seed=0, every=1
    )
    measure(lambda: next(records))


@group(group="sampling")
@both
def test_euler(measure: Callable[..., None], name: str) -> None:
    """128 samples in 8 Euler steps."""
    field = network_field(network_of(name, "auto", training=False), "auto")
    x0, grid = rng.noise(0, "sample", 0, 128, SHAPE), uniform_grid(8)
    measure(lambda: integrate(field, x0, grid, SOLVERS["euler"]))


@group(group="sampling")
def test_generate_pairs(measure: Callable[..., None]) -> None:
    """256 pairs of CIFAR-10's size in halves, with a field that costs nothing."""
    measure(
        lambda: list(
            generate_pairs(
                lambda x, t, label: -x / 2,
                256,
                shape=CIFAR,
                seed=0,
                grid=uniform_grid(1),
                solver=SOLVERS["euler"],
                batch=128,
                dtype=torch.float16,
            )
        )
    )


@group(group="draw of 256")
def test_u_shaped(measure: Callable[..., None]) -> None:
    """Times of a batch."""
    times, generator = UShaped(), rng.generator(0, "times")
    measure(lambda: times(256, generator))


@group(group="draw of 256")
def test_minibatch_ot(measure: Callable[..., None]) -> None:
    """Noise and images paired at the least cost."""
    coupling, generator = MinibatchOT(Independent(images(4096))), rng.generator(0, "ot")
    measure(lambda: coupling(256, generator))


@group(group="draw of 256")
@pytest.mark.parametrize("kind", ["stored", "sharded"])
def test_stored_pairs(measure: Callable[..., None], tmp_path: Path, kind: str) -> None:
    """Pairs from memory and from files."""
    store(tmp_path)
    coupling = Stored(open_pairs(tmp_path)[0]) if kind == "stored" else Sharded(map_pairs(tmp_path)[0])
    generator = rng.generator(0, "pairs")
    measure(lambda: coupling(256, generator))


@group(group="draw of 256")
@pytest.mark.parametrize("shards", [1, 64, 1024])
def test_many_shards(measure: Callable[..., None], shards: int) -> None:
    """Pairs from more and more shards, in memory."""
    x = images(64, CIFAR).half()
    coupling, generator = Sharded((Pairs(x, x),) * shards), rng.generator(0, "pairs")
    measure(lambda: coupling(256, generator))


@group(group="average of weights")
@both
def test_ema(measure: Callable[..., None], name: str) -> None:
    """One update."""
    current = list(network_of(name, "auto", training=True).parameters())
    average = [p.detach().clone() for p in current]
    measure(lambda: ema.update(average, current, 0.999))


@group(group="pairs on disk")
def test_write_shard(measure: Callable[..., None], tmp_path: Path) -> None:
    """1000 pairs of CIFAR-10's size in halves, synced."""
    pairs = thousand()
    measure(lambda: write_shard(tmp_path, 0, [pairs]))


@group(group="pairs on disk")
def test_open_pairs(measure: Callable[..., None], tmp_path: Path) -> None:
    """4000 such pairs, with their checksums."""
    store(tmp_path)
    measure(lambda: open_pairs(tmp_path))


@group(group="scores")
def test_frechet_distance(measure: Callable[..., None]) -> None:
    """2,000 samples against as many, on 64 features, statistics included."""
    a, b = rng.noise(0, "a", 0, 2000, (64,)), rng.noise(0, "b", 0, 2000, (64,))
    measure(lambda: frechet_distance(stats(a), stats(b)))


@group(group="scores")
def test_sliced_wasserstein(measure: Callable[..., None]) -> None:
    """5,000 points against as many, with its error."""
    a, b = rng.noise(0, "a", 0, 5000, (2,)), rng.noise(0, "b", 0, 5000, (2,))
    measure(lambda: sliced_wasserstein(a, b))


@group(group="noise")
@pytest.mark.parametrize("shape", [(2,), SHAPE, CIFAR], ids=str)
def test_noise(measure: Callable[..., None], shape: tuple[int, ...]) -> None:
    """Of 1000 samples, each from its own index."""
    measure(lambda: rng.noise(0, "sample", 0, 1000, shape))
