"""Writing pairs to disk in shards, so that a killed run loses at most one or two."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from flows.events import Event, Metrics, Note, Progress
from flows.workshop.workspace import need_space
from fmcore.disk.pairs import Shard, finished_shards, pair_bytes, shard_path, write_shard
from fmcore.flow.couplings import Pairs
from fmcore.flow.pixels import floats
from fmcore.flow.ranks import barrier, ranks
from fmcore.score.estimates import mean_estimate
from fmcore.score.straightness import transport_cost

SHARD_BYTES = 16 * 2**20
WAIT_SECONDS = 0.2  # from one look for the others' shards to the next


class ShardSize(NamedTuple):
    """How many pairs a shard holds, a multiple of the batch, and the bytes of a pair."""

    pairs: int
    pair_bytes: int


def shard_size(shape: tuple[int, ...], dtype: str, batch: int) -> ShardSize:
    """The size of shards of about `SHARD_BYTES`."""
    pair = pair_bytes(shape, getattr(torch, dtype))
    return ShardSize(max(1, SHARD_BYTES // pair // batch) * batch, pair)


def write_shards(
    out: Path, work: Progress, made: Callable[[int, int], Iterator[Pairs]], size: ShardSize, metric: str
) -> Generator[Event, None, dict[int, Shard]]:
    """Stores the pairs `made(start, stop)` in the shards that are missing, and returns all shards by first pair.

    A thread writes one shard while the next is made, so memory holds two. Of several processes each makes every
    N-th shard. The pairs' mean transport cost becomes the metric of that name, unless other pairs were there
    already or others made some.
    """
    count, here = work.total, ranks()
    shards = (yield from _there(out, work, size)) if here.leads else {}
    barrier()
    alone, left = not shards and here.size == 1, count - _pairs(shards.values())
    # One tensor: small ones kept from each batch would keep large blocks of memory in use.
    costs, made_here = torch.empty(left), 0
    yield work._replace(done=count - left)
    with ThreadPoolExecutor(1) as thread:
        writing: list[Future[Shard]] = []
        for start in range(0, count, size.pairs)[here.rank :: here.size]:
            stop = min(start + size.pairs, count)
            if shard_path(out, start).exists():
                continue
            batches: list[Pairs] = []
            for pairs in made(start, stop):
                batches.append(pairs)
                cost = transport_cost(pairs.x0.float(), floats(pairs.x1))
                costs[made_here : made_here + len(cost)] = cost
                made_here += len(cost)
                yield work._replace(done=count - left + made_here)
            _collect(shards, writing)
            writing.append(thread.submit(write_shard, out, start, batches))
        _collect(shards, writing)
    if here.leads and here.size > 1:
        shards = yield from _of_all(out, work, size)
    if alone:
        yield Metrics(0, {metric: mean_estimate(costs).value})
    return shards


def _there(out: Path, work: Progress, size: ShardSize) -> Generator[Event, None, dict[int, Shard]]:
    """The shards of a killed run that are whole; all else goes."""
    shards = finished_shards(out)
    names = {shard.file for shard in shards.values()}
    strange = [path for path in out.iterdir() if path.is_file() and path.name not in names] if out.is_dir() else []
    for path in strange:  # descriptions, which come last, and what is damaged
        path.unlink()
    if damaged := [path.name for path in strange if path.name.startswith("pairs-")]:
        yield Note(f"{work.title}: {len(damaged)} shards are damaged and are made again: {', '.join(damaged[:5])}")
    for start, shard in list(shards.items()):  # of another size
        if start % size.pairs or shard.pairs != min(size.pairs, work.total - start):
            shard_path(out, start).unlink()
            del shards[start]
    done = _pairs(shards.values())
    need_space(out.parent, size.pair_bytes * (work.total - done), f"{work.total - done} pairs")
    if done:
        yield Note(f"{work.title}: {done} of {work.total} pairs are there already")
    return shards


def _of_all(out: Path, work: Progress, size: ShardSize) -> Generator[Event, None, dict[int, Shard]]:
    """Waits for the shards of the other processes."""
    starts = range(0, work.total, size.pairs)
    while waiting := [start for start in starts if not shard_path(out, start).exists()]:
        yield work._replace(done=work.total - sum(min(size.pairs, work.total - start) for start in waiting))
        time.sleep(WAIT_SECONDS)
    yield work._replace(done=work.total)
    return finished_shards(out)


def _pairs(shards: Iterable[Shard]) -> int:
    return sum(shard.pairs for shard in shards)


def _collect(shards: dict[int, Shard], writing: list[Future[Shard]]) -> None:
    """Waits for the shard that is being written."""
    while writing:
        shard = writing.pop().result()
        shards[shard.start] = shard
