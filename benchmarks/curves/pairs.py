"""What a pair costs as their number grows, and where its time goes."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.curves.timing import median, of_whole, table, timed
from flows.events import Events, Progress
from flows.stages.shards import SHARD_BYTES, shard_size, write_shards
from flows.workshop.workspace import need_space
from fmcore.disk.pairs import map_pairs, seal_pairs, write_shard
from fmcore.flow import rng
from fmcore.flow.couplings import Pairs, Sharded, Stored, joined
from fmcore.flow.fields import network_field
from fmcore.flow.speed import keep_freed_memory, prepare, room
from fmcore.flow.times import uniform_grid
from fmcore.models.networks import Network, initialised
from fmcore.ode.reflow import draw, generate_pairs
from fmcore.ode.solvers import SOLVERS, solve
from fmcore.score.straightness import transport_cost

EULER, CPU = SOLVERS["euler"], torch.device("cpu")
CIFAR, PAIR_BATCH, DTYPE = (3, 32, 32), 1000, torch.uint8  # as the preset cifar10 keeps them
PAIR_BYTES = 3 * prod(CIFAR)  # samples of 8 bits, noise of 16
A_MILLION = 1_000_000


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
        lambda x, t, label: -x / 2,  # half of the noise is left; with -x only zeros would be left
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

        work = Progress("couple", 0, count, "pairs")
        shards = yield from write_shards(folder, work, part, rows, metric="transport_cost")
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
    full = max(1, SHARD_BYTES // (2 * 4 * prod(shape)) // batch)  # small shards would make files look expensive
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
