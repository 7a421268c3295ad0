"""Stage `couple@ROUND`: the couplings a round's teacher induces, in shards that a killed run keeps."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flows import layout
from flows.events import Event, Events, Metrics, Note, Progress
from flows.params import Params
from flows.setup import classes_of, device_of, eager, knots_of, prepared
from flows.work import need_space, publish, workspace, write_table
from fmcore.couplings import Pairs, Sharded
from fmcore.fields import Counted
from fmcore.metrics import mean_estimate, straightness, transport_cost
from fmcore.pixels import floats, quantise
from fmcore.quality import histogram, pair_quality, quantiles, suspicions
from fmcore.reflow import draw, generate_pairs, invert_data
from fmcore.rng import generator
from fmcore.solvers import SOLVERS, integrate, steps_for, trajectory
from fmcore.speed import largest_batch
from fmcore.store import (
    ArtifactError,
    Model,
    Shard,
    finished_shards,
    load_model,
    map_pairs,
    read_json,
    seal_pairs,
    write_json,
    write_shard,
)
from fmcore.times import OptimisedGrid, uniform_grid

SHARD_BYTES = 16 * 2**20
# Pairs that are made again, and how far off their median may be: other neighbours mean other last bits, which the
# ODE of a rough network in bfloat16 may spread, while a wrong teacher, direction or tensor is off by about 1.
AGAIN, TOLERANCE = 256, 0.1


def couple(params: Params, name: str) -> Events:
    """Integrates fresh noise through the teacher of round `name`, and real data back through it if asked to."""
    teacher_name, section = params.reflow.rounds[name].teacher, params.couple_of(name)
    device = device_of(params)
    teacher = load_model(layout.model(teacher_name), device, ema=section.ema)
    recipe = {
        "couple": asdict(section),
        "data": params.model_dump(mode="json")["data"],
        **params.model_dump(mode="json", include={"seed", "device", "precision", "compile", "conditional"}),
        "round": name,
    }
    data, labels = None, None
    if teacher.num_classes is not None or section.inverted:
        data = params.data.load()
        classes_of(params, data)
        labels = data.label if teacher.num_classes is not None else None
    solver = SOLVERS[section.solver]
    counted = Counted(teacher.field(params.precision))
    field = teacher.guide(counted, section.guidance)
    steps = steps_for(solver, section.nfe, passes=1 if section.guidance is None else 2)
    # Rounds draw different noise, or a round would see its teacher's training noise again.
    noise = {"shape": teacher.shape, "seed": params.seed, "purpose": f"pairs/{name}", "labels": labels}

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        x0, label = draw(0, count, **noise)  # type: ignore[arg-type]
        return x0.to(device), None if label is None else label.to(device)

    with workspace(f"couple@{name}", recipe, [layout.model(teacher_name)]) as work:
        # Kept, because a search that ran again could end on other knots.
        if not (work / "grid.json").exists():
            if isinstance(section.grid, OptimisedGrid):
                yield Note(f"couple {name}: searching for the grid, at most {24 * steps} solves")
            write_json(work / "grid.json", {"knots": knots_of(section.grid, steps, solver, field, some).tolist()})
        grid = torch.tensor(read_json(work / "grid.json")["knots"], dtype=torch.float64)
        counted.nfe = 0
        first, label = some(1)
        integrate(field, first, grid, solver, label)  # under a guidance interval a sample costs less than `nfe`
        # Kept too: what else fills a GPU may have changed when a killed run goes on.
        if not (work / "batch.json").exists():
            batch = section.batch
            if batch == "auto":
                # The last batch is filled up, and should not be by much.
                most = 1 << (section.pairs - 1).bit_length()

                def evaluate(count: int) -> None:
                    x0, label = some(count)
                    integrate(field, x0, uniform_grid(1), SOLVERS["euler"], label)

                batch = min(most, largest_batch(evaluate, teacher.shape, device))
                yield Note(f"couple {name}: {batch} pairs at a time")
            write_json(work / "batch.json", {"batch": batch})
        batch = read_json(work / "batch.json")["batch"]
        common = {"grid": grid, "solver": solver, "batch": batch, "device": device}
        common["dtype"] = getattr(torch, section.dtype)
        # After the above: what is compiled is compiled for one size of batch.
        yield prepared(params, teacher, section.nfe * (section.pairs + section.inverted))
        manifest: dict[str, Any] = {
            "stage": f"couple@{name}",
            "recipe": recipe,
            "teacher": {"model": teacher_name, "sha256": teacher.digest, "ema": section.ema},
            "shape": list(teacher.shape),
            "grid": grid.tolist(),
            "batch": batch,
            "network_evaluations": counted.nfe,
            "rounds": teacher.manifest["rounds"] + 1,
        }

        def generated(start: int, stop: int) -> Iterator[Pairs]:
            return generate_pairs(field, stop, start=start, **noise, **common)  # type: ignore[arg-type]

        out = work / "out"
        size = shard_size(teacher.shape, section.dtype, batch)
        shards = yield from write_shards(out, f"couple {name}", generated, section.pairs, size)
        if section.inverted:
            assert data is not None
            order = torch.randperm(len(data.x1), generator=generator(params.seed, f"inverted/{name}"))
            chosen = order[: section.inverted].sort().values

            def inverted(start: int, stop: int) -> Iterator[Pairs]:
                rows = chosen[start:stop]
                label = None if labels is None else labels[rows]
                return invert_data(field, data.x1[rows], label=label, **common)

            if len(chosen) < section.inverted:
                yield Note(
                    f"couple {name}: {section.inverted} inverted pairs wanted, {len(chosen)} made: all data"
                )
            place = out / layout.INVERTED
            real = yield from write_shards(place, f"invert {name}", inverted, len(chosen), size)
        # Last: a sealed folder could not be gone on with.
        if section.inverted:
            seal_pairs(place, real.values(), {**manifest, "stage": f"invert@{name}", "pairs": len(chosen)})
            yield from _quality(place, f"invert {name}", teacher, None)
        seal_pairs(out, shards.values(), {**manifest, "pairs": section.pairs})

        aside = teacher.guide(eager(teacher).field(params.precision), section.guidance)

        def again(x0: torch.Tensor, label: torch.Tensor | None) -> list[torch.Tensor]:
            on_device = None if label is None else label.to(device)
            return [x.cpu() for x in trajectory(aside, x0.to(device), grid, solver, on_device)]

        yield from _quality(out, f"couple {name}", teacher, again)
        publish(out, layout.couplings(name))


def _quality(
    folder: Path,
    what: str,
    teacher: Model,
    again: Callable[[torch.Tensor, torch.Tensor | None], list[torch.Tensor]] | None,
) -> Events:
    """Looks at the pairs as they lie on disk, makes some of them again, and keeps what it found beside them.

    Raises:
        ArtifactError: if a pair is not finite, or the teacher takes a pair's noise elsewhere than to its sample.
    """
    parts, manifest = map_pairs(folder)
    numbers, bins = pair_quality(iter(parts), teacher.num_classes)
    if numbers["not_finite"]:
        raise ArtifactError(f"{folder}: {numbers['not_finite']:.0f} pairs are not finite")
    if again is not None:
        pairs = Sharded(parts)
        x0, x1, label = pairs.at(torch.randperm(len(pairs), generator=generator(0, "pairs/again"))[:AGAIN])
        points = again(x0.float(), label)
        stored = floats(x1).flatten(1)
        made = floats(quantise(points[-1])) if x1.dtype == torch.uint8 else points[-1]
        off = (made.flatten(1) - stored).norm(dim=1) / stored.norm(dim=1).clamp(min=1)
        numbers["again"] = float(off.median())
        if not numbers["again"] < TOLERANCE:
            raise ArtifactError(
                f"{folder}: pairs made again end {numbers['again']:.2g} of their size away from those stored"
            )
        curvature = straightness(points, torch.tensor(manifest["grid"], dtype=torch.float64))
        numbers |= quantiles("curvature", curvature)
        bins += histogram("curvature", curvature)
    for line in suspicions(numbers):
        yield Note(f"{what}: {line}")
    write_json(folder / "quality.json", {key: float(f"{value:.6g}") for key, value in numbers.items()})
    write_table(folder / "histograms.csv", ("what", "left", "right", "count"), bins)
    prefix = "inverted" if again is None else "pairs"
    yield Metrics(0, {f"{prefix}.{key}": value for key, value in numbers.items()})


class ShardSize(NamedTuple):
    """How many pairs a shard holds, a multiple of the batch, and the bytes of a pair."""

    pairs: int
    pair_bytes: int


def shard_size(shape: tuple[int, ...], dtype: str, batch: int) -> ShardSize:
    """The size of shards of about `SHARD_BYTES`."""
    noise = max(2, getattr(torch, dtype).itemsize)  # of 8-bit samples it is kept in half precision
    pair = prod(shape) * (noise + getattr(torch, dtype).itemsize)
    return ShardSize(max(1, SHARD_BYTES // pair // batch) * batch, pair)


def _collect(shards: dict[int, Shard], writing: list[Future[Shard]]) -> None:
    """Waits for what is being written."""
    while writing:
        shard = writing.pop().result()
        shards[shard.start] = shard


def write_shards(
    out: Path,
    what: str,
    made: Callable[[int, int], Iterator[Pairs]],
    count: int,
    size: ShardSize,
) -> Generator[Event, None, dict[int, Shard]]:
    """Stores the pairs `made(start, stop)` in shards, going on after those that are there, and returns all.

    A thread writes one shard while the next is made, so memory holds two.
    """
    shards = finished_shards(out)
    done = sum(shard.pairs for shard in shards.values())
    need_space(out.parent, size.pair_bytes * (count - done), f"{count - done} pairs")
    if done:
        yield Note(f"{what}: {done} of {count} pairs are there already")
    whole = not done
    yield Progress(what, done, count, "pairs")
    # In one piece: small tensors kept from each batch would hold the large blocks around them, and memory grow.
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
                yield Progress(what, done, count, "pairs")
            _collect(shards, writing)
            writing.append(thread.submit(write_shard, out, start, batches))
        _collect(shards, writing)
    if whole:
        key = "transport_cost" if what.startswith("couple") else "transport_cost_inverted"
        yield Metrics(0, {key: mean_estimate(costs).value})
    return shards
