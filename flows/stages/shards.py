"""Writing pairs to disk in shards, so that a killed run loses at most one or two."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from flows.events import Event, Metrics, Note, Progress
from flows.workshop.workspace import need_space
from fmcore.disk.pairs import Shard, finished_shards, pair_bytes, write_shard
from fmcore.flow.couplings import Pairs
from fmcore.flow.pixels import floats
from fmcore.score.estimates import mean_estimate
from fmcore.score.straightness import transport_cost

SHARD_BYTES = 16 * 2**20


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

    A thread writes one shard while the next is made, so memory holds two. The pairs' mean transport cost becomes
    the metric of that name, unless some shards were there already.
    """
    shards, count = finished_shards(out), work.total
    names = {shard.file for shard in shards.values()}
    strange = [path for path in out.iterdir() if path.is_file() and path.name not in names] if out.is_dir() else []
    for path in strange:  # descriptions, which come last, and what is damaged
        path.unlink()
    if damaged := [path.name for path in strange if path.name.startswith("pairs-")]:
        yield Note(f"{work.title}: {len(damaged)} shards are damaged and are made again: {', '.join(damaged[:5])}")
    done = sum(shard.pairs for shard in shards.values())
    need_space(out.parent, size.pair_bytes * (count - done), f"{count - done} pairs")
    if done:
        yield Note(f"{work.title}: {done} of {count} pairs are there already")
    whole = not done
    yield work._replace(done=done)
    # One tensor: small ones kept from each batch would keep large blocks of memory in use.
    costs = torch.empty(count - done)
    made_here = 0
    with ThreadPoolExecutor(1) as thread:
        writing: list[Future[Shard]] = []
        for start in range(0, count, size.pairs):
            stop = min(start + size.pairs, count)
            if start in shards and shards[start].pairs == stop - start:
                continue
            batches: list[Pairs] = []
            for pairs in made(start, stop):
                batches.append(pairs)
                cost = transport_cost(pairs.x0.float(), floats(pairs.x1))
                costs[made_here : made_here + len(cost)] = cost
                made_here += len(cost)
                done += len(cost)
                yield work._replace(done=done)
            _collect(shards, writing)
            writing.append(thread.submit(write_shard, out, start, batches))
        _collect(shards, writing)
    if whole:
        yield Metrics(0, {metric: mean_estimate(costs).value})
    return shards


def _collect(shards: dict[int, Shard], writing: list[Future[Shard]]) -> None:
    """Waits for the shard that is being written."""
    while writing:
        shard = writing.pop().result()
        shards[shard.start] = shard
