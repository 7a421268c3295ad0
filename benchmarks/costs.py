"""Curves of cost: what a pair, a training step and a sample cost as the work grows, and where the time goes.

    python benchmarks/costs.py [--quick] [--threads 2] [--largest 100000] [--only pairs|work] [--out FILE]

Pairs are written to a temporary folder, each size in a process of its own, so that peaks of memory compare; the
curve ends at `--largest` pairs, and 1000000 of them take 9.2 GB of disk. Seconds belong to the machine; whether
the cost of one image stays flat does not. Linux only: peaks are read from /proc.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count as counting
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import psutil
import torch
from lap import lapjvx
from scipy.optimize import linear_sum_assignment
from scipy.stats import rv_continuous
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import flows.stages.training  # noqa: E402
from benchmarks import machine  # noqa: E402
from flows.events import Events  # noqa: E402
from flows.launch.runner import Bars  # noqa: E402
from flows.params.reading import read  # noqa: E402
from flows.stages.shards import SHARD_BYTES, shard_size, write_shards  # noqa: E402
from flows.watch import journal  # noqa: E402
from flows.workshop.workspace import need_space  # noqa: E402
from fmcore.disk import checkpoint  # noqa: E402
from fmcore.disk.files import write_file  # noqa: E402
from fmcore.disk.pairs import map_pairs, seal_pairs, write_shard  # noqa: E402
from fmcore.flow import ema, rng  # noqa: E402
from fmcore.flow.couplings import Independent, MinibatchOT, Pairs, Sharded, Stored, joined  # noqa: E402
from fmcore.flow.fields import network_field  # noqa: E402
from fmcore.flow.losses import Squared  # noqa: E402
from fmcore.flow.paths import LINEAR, interpolate  # noqa: E402
from fmcore.flow.speed import flops, keep_freed_memory, prepare, room  # noqa: E402
from fmcore.flow.times import Uniform, UShaped, uniform_grid  # noqa: E402
from fmcore.flow.training import Objective, TrainConfig, flow_objective, new_state, train  # noqa: E402
from fmcore.models.networks import MLP, Network, UNet, initialised  # noqa: E402
from fmcore.ode.reflow import draw, generate_pairs  # noqa: E402
from fmcore.ode.solvers import SOLVERS, solve  # noqa: E402
from fmcore.score.straightness import transport_cost  # noqa: E402

EULER, CPU = SOLVERS["euler"], torch.device("cpu")
CIFAR, PAIR_BATCH, DTYPE = (3, 32, 32), 1000, torch.uint8  # as the preset cifar10 keeps them
PAIR_BYTES = 3 * prod(CIFAR)  # samples of 8 bits, noise of 16
A_MILLION = 1_000_000
SMALL_MLP, LARGE_UNET = MLP(width=512, depth=3), UNet(channels=(32, 64, 128), layers=1)


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of some work, after a turn that does not count."""
    work()
    return statistics.median(timed(work) for _ in range(repeats))


def table(title: str, heads: str, rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    columns = heads.count("|") + 1
    return ["", title, "", f"| {heads} |", f"|{' --- |' * columns}", *(f"| {' | '.join(row)} |" for row in rows)]


def of_whole(part: float, whole: float) -> str:
    """A share in per cent."""
    return f"{100 * part / whole:.2f} %"


# --- pairs: their number --------------------------------------------------------------------------------------


class Memory:
    """How far the resident memory of this process rises above what it was at the start."""

    def __init__(self) -> None:
        self.start, self.files = self._bytes("VmRSS"), self._bytes("RssFile")
        self.forget()

    def forget(self) -> None:
        """Begins a new peak. `ru_maxrss` cannot, and a process inherits its parent's."""
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> str:
        """The highest since then, in MB."""
        return f"{(self._bytes('VmHWM') - self.start) / 1e6:,.0f}"

    def of_files(self) -> str:
        """Pages of files mapped since the start, in MB: the kernel takes them back when it needs them."""
        return f"{(self._bytes('RssFile') - self.files) / 1e6:,.0f}"

    @staticmethod
    def _bytes(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{key}:"))
        return int(line.split()[1]) * 1024


def alone(work: Callable[..., Any], *args: object) -> Any:
    """What some work returns when a new process does it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *args).result()


def begin(threads: int) -> Memory:
    """What a stage of the pipeline sets up in its process."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    return Memory()


def write_pairs(folder: Path, count: int, threads: int) -> tuple[float, str]:
    """Makes and writes pairs with the stage's own loop and a field that costs nothing; seconds and peak."""
    made = partial(
        generate_pairs,
        lambda x, t, label: -x / 2,  # half of the noise is left; with -x only zeros would be
        shape=CIFAR,
        seed=0,
        grid=uniform_grid(1),
        solver=EULER,
        dtype=DTYPE,
    )

    def events() -> Events:
        rows = shard_size(CIFAR, "uint8", PAIR_BATCH)

        def part(start: int, stop: int) -> Iterator[Pairs]:
            return made(stop, start=start, batch=PAIR_BATCH)

        shards = yield from write_shards(folder, "couple", part, count, rows, metric="transport_cost")
        seal_pairs(folder, shards.values(), {"pairs": count})

    for pairs in made(1, batch=1):  # what is loaded at first use
        transport_cost(pairs.x0.float(), pairs.x1.float())
    memory = begin(threads)
    return timed(lambda: list(events())), memory.peak()


def read_pairs(folder: Path, mapped: bool, threads: int) -> tuple[float, str, float, str, str]:
    """Opens stored pairs and draws from them: seconds and peak of either, and the files' share of the last."""
    memory = begin(threads)
    found: list[Stored | Sharded] = []

    def work() -> None:
        parts, _ = map_pairs(folder)
        found.append(Sharded(parts) if mapped else Stored(joined(parts)))

    opening, opening_peak = timed(work), memory.peak()
    memory.forget()
    steps = iter(range(100))
    drawing = median(lambda: found[0](256, rng.generator(0, "train", next(steps))), 50)
    return opening, opening_peak, drawing, memory.peak(), memory.of_files()


def pair_curve(largest: int, threads: int) -> list[str]:
    """Cost of writing, opening and drawing pairs against their number."""
    writing: list[list[str]] = []
    reading: list[list[str]] = []
    size = 0.0
    need_space(Path(tempfile.gettempdir()), PAIR_BYTES * largest, f"{largest:,} pairs")
    for count in (10**k for k in range(3, 7) if 10**k <= largest):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            seconds, peak = alone(write_pairs, folder, count, threads)
            size = sum(file.stat().st_size for file in folder.iterdir()) / count
            writing.append([f"{count:,}", f"{seconds:.2f}", f"{1e6 * seconds / count:.1f}", f"{size:,.1f}", peak])
            for mapped, name in ((False, "in memory"), (True, "mapped")):
                if not mapped and PAIR_BYTES * count > room(CPU):
                    reading.append([f"{count:,}", name, *["does not fit"] * 6])
                    continue
                opened, peak, drawn, drawn_peak, files = alone(read_pairs, folder, mapped, threads)
                cells = [
                    f"{opened:.3f}",
                    f"{1e6 * opened / count:.1f}",
                    peak,
                    f"{1e3 * drawn:.2f}",
                    drawn_peak,
                    files,
                ]
                reading.append([f"{count:,}", name, *cells])
    whole = "measured" if largest >= A_MILLION else f"extrapolated from {size:,.1f} bytes a pair, not measured"
    return [
        *table(
            f"Writing pairs: 3x32x32, uint8 (noise float16), shards of {SHARD_BYTES / 2**20:.0f} MiB, a field "
            "that costs nothing: noise, checks, checksums, files. Peak: resident memory above that after imports.",
            "pairs | s | µs a pair | bytes a pair | peak, MB",
            writing,
        ),
        "",
        f"{A_MILLION:,} such pairs on disk: {size * A_MILLION / 1e9:.2f} GB ({whole}).",
        *table(
            "Opening them, checksums included, and training draws of 256 (median of 50). Mapped pairs stay in "
            "their files; pages of files count as resident until the kernel wants them back.",
            "pairs | how | opening, s | µs a pair | peak, MB | draw, ms | peak, MB | pages of files, MB",
            reading,
        ),
    ]


# --- pairs: where their time goes -----------------------------------------------------------------------------


def pair_shares(
    name: str, config: Network, shape: tuple[int, ...], batch: int, nfe: int, repeats: int
) -> list[str]:
    """A line of the table: microseconds and share of each part of making a pair."""
    network = initialised(config, shape, None, 0).eval()
    prepare(network, "auto", "off", work=0, training=False)
    field, grid = network_field(network, "auto"), uniform_grid(nfe)
    x0, _ = draw(0, batch, shape=shape, seed=0)
    made = partial(generate_pairs, shape=shape, seed=0, grid=grid, solver=EULER, batch=batch)
    (pairs,) = made(field, batch)
    full = max(1, SHARD_BYTES // (2 * 4 * prod(shape)) // batch)  # shards of few pairs would make files look dear
    with tempfile.TemporaryDirectory() as place:
        seconds = {
            "noise": median(lambda: draw(0, batch, shape=shape, seed=0), repeats),
            "solve": median(lambda: solve(field, x0, grid, EULER), repeats),
            "write": median(lambda: write_shard(Path(place), 0, [pairs] * full), repeats) / full,
        }
    # What generate_pairs does besides drawing and solving, and the stage with what it yields.
    checks = median(lambda: list(made(lambda x, t, label: x, batch)), repeats) - seconds["noise"]
    checks -= median(lambda: solve(lambda x, t, label: x, x0, grid, EULER), repeats)
    checks += median(lambda: transport_cost(pairs.x0.float(), pairs.x1.float()), repeats)
    parts = [seconds["solve"], seconds["noise"], max(checks, 0.0), seconds["write"]]
    cells = [f"{1e6 * part / batch:.1f} ({of_whole(part, sum(parts))})" for part in parts]
    return [name, str(nfe), f"{1e6 * sum(parts) / batch:,.1f}", *cells]


# --- training and sampling ------------------------------------------------------------------------------------


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
    passes["student"] = (3 * wanted.distill.train.images, 0)
    total = sum(map(sum, passes.values()))
    return [
        [name, *(f"{n / 1e6:.2f}" for n in (learning, pairs, learning + pairs)), of_whole(learning + pairs, total)]
        for name, (learning, pairs) in passes.items()
    ]


# --- a training step: where its time goes ---------------------------------------------------------------------


class Clock:
    """Seconds by part; time in a part that another calls is the inner part's alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]

    def around(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, clocked."""

        def clocked(*args: object, **options: object) -> Any:
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                seconds = time.perf_counter() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + seconds - self.inner.pop()
                self.inner[-1] += seconds

        return clocked


@contextmanager
def clocks(clock: Clock, network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Clocks inside the library's own training step, so that what is measured is that step and no copy of it."""
    places = [
        ("network", network, "forward"),
        ("network", Tensor, "backward"),  # the loss's own part of it is a few passes over the batch
        ("optimizer", optimizer, "step"),
        ("optimizer", optimizer, "zero_grad"),
        ("clipping", nn.utils, "get_total_norm"),
        ("clipping", nn.utils, "clip_grads_with_norm_"),
        ("EMA", ema, "update"),
    ]
    with ExitStack() as stack:
        for part, owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, clock.around(part, getattr(owner, name))))
        yield


PARTS = ("network", "draw", "path and loss", "clipping", "optimizer", "EMA", "checks and records")


def step_shares(name: str, config: Network, shape: tuple[int, ...], batch: int, repeats: int) -> list[str]:
    """A line of the table: the share of each part of a training step, and the network alone on the same batch."""
    network, settings = trained(config, shape), config_of(batch)
    plain = objective_of(shape, batch)
    state = new_state(network, settings)
    (x0, x1, _), t, _ = plain.draw(rng.generator(0, "train"), 0.0)
    x_t, u_t = interpolate(LINEAR, x0, x1, t)
    field = network_field(network, "auto")

    def bare() -> None:
        network.zero_grad(set_to_none=True)
        field(x_t, t, None).backward(u_t)

    clock = Clock()
    objective = Objective(clock.around("draw", plain.draw), clock.around("path and loss", plain.loss))
    whole: list[float] = []
    alone: list[float] = []
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    # A record of each step, where the stages take one of fifty: more than they cost there.
    records = train(state, objective, settings, seed=0, every=1)
    for k in range(repeats + 1):
        with clocks(clock, network, state.optimizer):
            seconds = timed(lambda: next(records))
        parts, clock.seconds = clock.seconds, {}
        without = timed(bare)
        if not k:
            continue  # warm
        whole.append(seconds)
        alone.append(without)
        parts["checks and records"] = seconds - sum(parts.values())
        for part in PARTS:
            found[part].append(parts.get(part, 0.0))
    step = statistics.median(whole)
    shares = [of_whole(statistics.median(found[part]), step) for part in PARTS]
    outside = step - statistics.median(found["network"])
    difference = min(whole) - min(alone)  # the fastest: a small difference of large times
    return [name, str(batch), f"{1e3 * step:,.1f}", *shares, f"{1e3 * outside:.2f}", f"{1e3 * difference:+.2f}"]


# --- what is kept of a training -------------------------------------------------------------------------------


def watching_shares(name: str, config: Network, shape: tuple[int, ...], batch: int, seconds: float) -> list[str]:
    """A line of the table: what a training's bar, journal and checkpoints take of it, and the process that ships.

    It is the stages' own `run_training`, heard by what hears a stage; MLflow is a database in the same folder.
    """
    network = trained(config, shape)
    objective = objective_of(shape, batch)
    warm = replace(config_of(batch), images=10 * batch)
    for _ in train(new_state(network, warm), objective, warm, seed=0):
        pass
    a_step = timed(lambda: list(train(new_state(network, warm), objective, warm, seed=0))) / 10
    settings = replace(config_of(batch), images=batch * max(100, round(seconds / a_step)))
    clock = Clock()
    with tempfile.TemporaryDirectory() as place, mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": ""}):
        root, work = Path(place), Path(place) / "work"
        with (
            mock.patch.object(checkpoint, "save", clock.around("checkpoints", checkpoint.save)),
            mock.patch.object(flows.stages.training, "write_file", clock.around("checkpoints", write_file)),
            journal.open_journal(root, stage="base", params={}, tags={}) as mlflow,
            Bars() as bars,
        ):
            shown, kept = clock.around("bar", bars), clock.around("journal", mlflow)
            start = time.perf_counter()
            for event in flows.stages.training.run_training(
                "base", work, new_state(network, settings), objective, settings, 0
            ):
                for said in (event, *shown(event)):
                    kept(said)
            whole = time.perf_counter() - start
        shipping = seconds_of_postman(root)
    shares = [of_whole(clock.seconds.get(part, 0.0), whole) for part in ("bar", "journal", "checkpoints")]
    return [name, str(batch), f"{whole:.1f}", *shares, f"{shipping:.1f}"]


def seconds_of_postman(root: Path) -> float:
    """CPU-seconds of the process that sends the journals of this folder, seen until it leaves."""
    mine = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == str(root)]
    spent = 0.0
    with suppress(psutil.Error):
        while mine and mine[0].is_running():
            times = mine[0].cpu_times()
            spent = times.user + times.system
            time.sleep(0.1)
    return spent


# --- drawing --------------------------------------------------------------------------------------------------


def assignment_costs(count: int, repeats: int) -> list[str]:
    """A line of the table: milliseconds to draw a batch, and of them to pair it at least cost, on one thread."""
    fresh = Independent(torch.rand(4096, 1, 8, 8, generator=rng.generator(0, "images")) * 2 - 1)
    steps = counting()
    (x0, x1, _) = fresh(count, rng.generator(0, "train"))
    cost = -(x1.flatten(1) @ x0.flatten(1).T).numpy()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain, ot = (
        median(lambda drawn=coupling: drawn(count, rng.generator(0, "train", next(steps))), repeats)
        for coupling in (fresh, MinibatchOT(fresh))
    )
    torch.set_num_threads(threads)
    theirs, ours = (
        median(lambda: linear_sum_assignment(cost), repeats),
        median(lambda: lapjvx(cost, return_cost=False), repeats),
    )
    return [str(count), *(f"{1e3 * s:.2f}" for s in (plain, ot, theirs, ours)), f"{theirs / ours:.1f}"]


# --- times ----------------------------------------------------------------------------------------------------


class ByDensity(rv_continuous):
    """Times from their density alone, as rfpp draws them: for each, scipy inverts the integral of it."""

    def _pdf(self, t: np.ndarray) -> np.ndarray:
        a = 4.0
        return a * (np.exp(a * t) + np.exp(a * (1 - t))) / (2 * np.expm1(a))


def time_costs(count: int, repeats: int) -> list[str]:
    """A line of the table: milliseconds to draw so many u-shaped times."""
    theirs, ours, generator = ByDensity(a=0.0, b=1.0), UShaped(a=4.0), rng.generator(0, "times")
    slow = median(lambda: theirs.rvs(size=count, random_state=0), repeats)
    fast = median(lambda: [ours(count, generator) for _ in range(100)], repeats) / 100
    return [str(count), f"{1e3 * slow:.1f}", f"{1e3 * fast:.4f}", f"{slow / fast:,.0f}"]


class Scale(NamedTuple):
    """How much is run."""

    largest: int
    repeats: int
    few: int  # repeats of what takes seconds
    mlp_batch: int
    unet_batch: int
    nfe: int
    watched: float  # seconds of training


def main() -> int:
    """Runs all and prints the tables."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that all runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--largest", type=int, default=100_000, help="pairs; 1000000 for the whole curve, 9.2 GB")
    parser.add_argument("--only", choices=("pairs", "work"), help="couplings, or training and sampling")
    parser.add_argument("--out", type=Path, help="where to write the tables")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scale = (
        Scale(min(args.largest, 10_000), 3, 1, 200, 16, 16, 2.0)
        if args.quick
        else Scale(args.largest, 9, 5, 1000, 64, 64, 60.0)
    )
    mlp, unet = "MLP 512x3, 1x8x8", "U-Net 32, 64, 128, 3x32x32"
    command = f"python benchmarks/costs.py{' --quick' if args.quick else ''} --threads {args.threads}"
    if args.largest != parser.get_default("largest"):
        command += f" --largest {args.largest}"
    if args.only:
        command += f" --only {args.only}"
    lines = [f"`{command}` on {machine.kind()}, torch {torch.__version__}, threads: {args.threads}"]
    if args.only != "work":
        lines += pair_curve(scale.largest, args.threads)  # first: later ones would find the memory warm
    keep_freed_memory()
    if args.only != "work":
        lines += table(
            "Making a pair with a network, µs (share): Euler, float32 pairs, full shards",
            "network | NFE | in all | network | noise | checks, transport cost | writing",
            [
                pair_shares(mlp, SMALL_MLP, (1, 8, 8), scale.mlp_batch, 32, scale.few),
                pair_shares(unet, LARGE_UNET, CIFAR, scale.unet_batch, 4, scale.few),
            ],
        )
    if args.only != "pairs":
        lines += work_tables(args.quick, scale, mlp, unet)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


def work_tables(quick: bool, scale: Scale, mlp: str, unet: str) -> list[str]:
    """What training and sampling cost."""
    step_batch = 32 if quick else 256
    return [
        *table(
            "A training step of a U-Net, one thing changed at a time (operations: three forward passes)",
            "changed | image | batch | ms an image | images/s | M operations an image | G operations/s",
            step_curve(quick, scale.few),
        ),
        *table(
            "Sampling with Euler, ms, and the line through it: ms an evaluation, ms whatever the NFE",
            "network | batch | NFE 1 | 2 | 4 | 8 | 16 | 32 | 64 | an evaluation | fixed | farthest from the line",
            [
                sampling_curve(mlp, SMALL_MLP, (1, 8, 8), scale.mlp_batch, scale.nfe, scale.repeats),
                sampling_curve(
                    "U-Net 32, 64, 1x8x8", UNet((32, 64), 1), (1, 8, 8), scale.unet_batch, scale.nfe, scale.repeats
                ),
            ],
        ),
        *table(
            "Forward passes of `params.yaml`, in millions: images x 3 of training, pairs x NFE of couplings",
            "model | training | pairs | in all | share",
            round_costs(),
        ),
        *table(
            "Where a training step goes. Outside: all but the network. Step less network: the fastest step minus "
            "the fastest forward and backward pass of the network alone on one batch, in turns.",
            f"network | batch | step, ms | {' | '.join(PARTS)} | outside, ms | step less network, ms",
            [
                step_shares(mlp, SMALL_MLP, (1, 8, 8), 256, 10 * scale.repeats),
                step_shares(unet, LARGE_UNET, CIFAR, step_batch, scale.repeats),
            ],
        ),
        *table(
            "What hears a training, as shares of it: the bar, the journal for MLflow (a record every 50 steps), "
            "checkpoints; and CPU-seconds of the process that sends the journal, importing MLflow included, which "
            "a pipeline pays once",
            "network | batch | training, s | bar | journal | checkpoints | sending, CPU-s",
            [
                watching_shares(mlp, SMALL_MLP, (1, 8, 8), 256, scale.watched),
                watching_shares(unet, LARGE_UNET, CIFAR, 16, scale.watched),
            ],
        ),
        *table(
            "Drawing a batch of 1x8x8 images with noise, ms on one thread; solving the assignment alone, in scipy "
            "and in lapx",
            "batch | independent | minibatch OT | scipy | lapx | ratio",
            [assignment_costs(count, scale.repeats) for count in (64, 128, 256, 512, 1024)],
        ),
        *table(
            "Drawing u-shaped times: scipy's rv_continuous with only a density (rfpp's way), and in closed form",
            "times | rv_continuous, ms | UShaped, ms | ratio",
            [time_costs(count, scale.repeats) for count in (128, 512)],
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
