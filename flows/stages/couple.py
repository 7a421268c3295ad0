"""Stage `couple@ROUND`: the couplings a round's teacher induces, in shards that a killed run keeps."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flows import layout
from flows.events import Event, Events, Metrics, Note, Progress
from flows.params.schema import Couple, Params
from flows.stages.shards import shard_size, write_shards
from flows.workshop.entry import Stage
from flows.workshop.setup import classes_of, device_of, eager, set_up
from flows.workshop.workspace import PAIRS, made_by, publish, workspace, write_table
from fmcore.disk.dataset import Dataset, load_dataset
from fmcore.disk.files import ArtifactError, write_json
from fmcore.disk.kept import keep, kept
from fmcore.disk.pairs import map_pairs, seal_pairs
from fmcore.flow.couplings import Pairs, Sharded
from fmcore.flow.fields import Counted, VelocityField
from fmcore.flow.pixels import floats, quantise
from fmcore.flow.ranks import barrier, ranks
from fmcore.flow.rng import generator
from fmcore.flow.speed import largest_batch
from fmcore.flow.times import OptimisedGrid, uniform_grid
from fmcore.models.folder import Trained, load_model
from fmcore.ode.reflow import draw, generate_pairs, invert_data
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import SOLVERS, integrate, trajectory
from fmcore.score.pair_quality import Quality, histogram, pair_quality, quantiles, suspicions
from fmcore.score.straightness import straightness

# How many pairs are made again, and how far off they may be in the median. Other batches give other last bits,
# which a rough network in bfloat16 may amplify. A wrong teacher, direction or tensor is off by about 1.
AGAIN, TOLERANCE = 256, 0.1


class Making(NamedTuple):
    """What the pairs of a round are made with."""

    name: str
    section: Couple
    teacher: Trained
    field: VelocityField
    seed: int
    data: Dataset | None
    labels: Tensor | None

    @property
    def how(self) -> Sampling:
        """How a sample is made of its noise."""
        return self.section.sampling

    @property
    def noise(self) -> dict[str, Any]:
        """What decides the noise. Each round has its own: else a teacher would get noise it was trained on."""
        shape, purpose = self.teacher.shape, f"pairs/{self.name}"
        return {"shape": shape, "seed": self.seed, "purpose": purpose, "labels": self.labels}

    def starts(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The noise and labels of the first `count` pairs, on the device."""
        x0, label = draw(0, count, **self.noise)
        device = self.teacher.device
        return x0.to(device), None if label is None else label.to(device)


def couple(params: Params, stage: Stage) -> Events:
    """Integrates fresh noise through the teacher of a round, and real data back through it if asked to."""
    name, section = stage.name, params.couple_of(stage.name)
    teacher_name = params.reflow.rounds[name].teacher
    teacher = load_model(layout.model(teacher_name), device_of(params), ema=section.ema)
    data, labels = None, None
    if teacher.num_classes is not None or section.inverted:
        data = load_dataset(layout.DATASET)
        classes_of(params, data)
        labels = data.label if teacher.num_classes is not None else None
    counted = Counted(teacher.field(params.precision))
    of = Making(name, section, teacher, teacher.guide(counted, section.guidance), params.seed, data, labels)
    with workspace(stage, params) as work:
        grid = yield from _grid(of, work)
        counted.nfe = 0
        first, label = of.starts(1)
        integrate(of.field, first, grid, of.how.method, label)  # counts: an interval of guidance saves evaluations
        evaluations = counted.nfe
        batch = yield from _batch(of, work)
        # After the above, because a network is compiled for one batch size.
        yield set_up(params, teacher, section.nfe * (section.pairs + section.inverted))
        manifest = made_by(params, stage) | {
            "teacher": {"model": teacher_name, "sha256": teacher.digest, "ema": section.ema},
            "shape": list(teacher.shape),
            "solver": section.solver,
            "grid": grid.tolist(),
            "batch": batch,
            "network_evaluations": evaluations,
            "rounds": teacher.manifest["rounds"] + 1,
        }
        yield from _store(of, work / PAIRS, grid, batch, manifest)
        if not ranks().leads:
            return
        yield from _look_again(of, params, work / PAIRS, grid)
        publish(work / PAIRS, layout.couplings(name))


def _grid(of: Making, work: Path) -> Generator[Event, None, Tensor]:
    """The times between which the solver steps; kept, because a search that ran again could end on others."""
    how = of.how
    if ranks().leads and not (work / "grid.json").exists():
        if isinstance(how.grid, OptimisedGrid):
            yield Note(f"couple {of.name}: searching for the grid, at most {24 * how.steps} solves")
        keep(work / "grid.json", how.found_knots(of.field, of.starts).tolist())
    barrier()
    return torch.tensor(kept(work / "grid.json"), dtype=torch.float64)


def _batch(of: Making, work: Path) -> Generator[Event, None, int]:
    """How many pairs are made at a time; kept, because what else fills a GPU may have changed after a kill."""
    if ranks().leads and not (work / "batch.json").exists():
        batch = of.section.batch
        if batch == "auto":
            # The last batch is padded; a larger batch than this would only hold more padding.
            most = 1 << (of.section.pairs - 1).bit_length()

            def evaluate(count: int) -> None:
                x0, label = of.starts(count)
                integrate(of.field, x0, uniform_grid(1), SOLVERS["euler"], label)

            batch = min(most, largest_batch(evaluate, of.teacher.shape, of.teacher.device))
            yield Note(f"couple {of.name}: {batch} pairs at a time")
        keep(work / "batch.json", batch)
    barrier()
    found: int = kept(work / "batch.json")
    return found


def _store(of: Making, out: Path, grid: Tensor, batch: int, manifest: dict[str, Any]) -> Events:
    """Writes the pairs with their manifest, and those of real data in a folder of their own."""
    section, teacher = of.section, of.teacher
    dtype = getattr(torch, section.dtype)
    common: dict[str, Any] = {
        "grid": grid,
        "solver": of.how.method,
        "batch": batch,
        "device": teacher.device,
    }
    size = shard_size(teacher.shape, section.dtype, batch)

    def generated(start: int, stop: int) -> Iterator[Pairs]:
        return generate_pairs(of.field, stop, start=start, dtype=dtype, **of.noise, **common)

    work = Progress("couple", 0, section.pairs, "pairs", of=of.name)
    shards = yield from write_shards(out, work, generated, size, metric="couplings/transport_cost")
    if section.inverted:
        assert of.data is not None
        x1, labels = of.data.x1, of.labels
        order = torch.randperm(len(x1), generator=generator(of.seed, f"inverted/{of.name}"))
        chosen = order[: section.inverted].sort().values

        def inverted(start: int, stop: int) -> Iterator[Pairs]:
            rows = chosen[start:stop]
            label = None if labels is None else labels[rows]
            return invert_data(of.field, x1[rows], label=label, dtype=dtype, **common)

        if len(chosen) < section.inverted:
            yield Note(f"couple {of.name}: {section.inverted} inverted pairs wanted, {len(chosen)} made: all data")
        place, work = out / layout.INVERTED, Progress("invert", 0, len(chosen), "pairs", of=of.name)
        metric = "couplings/transport_cost_inverted"
        real = yield from write_shards(place, work, inverted, size, metric=metric)
        if not ranks().leads:
            return
        # The manifests come after all shards: a folder with one is complete.
        about = {"stage": f"invert@{of.name}", "pairs": len(chosen)}
        seal_pairs(place, real.values(), manifest | about)
        found = _checked(place, map_pairs(place)[0], teacher)
        yield from _record(place, work.title, found, prefix="inverted")
    if ranks().leads:
        seal_pairs(out, shards.values(), manifest | {"pairs": section.pairs})


def _checked(folder: Path, parts: Sequence[Pairs], teacher: Trained) -> Quality:
    """What the pairs look like; an `ArtifactError` if one is not finite."""
    found = pair_quality(iter(parts), teacher.num_classes)
    if bad := found.numbers["not_finite"]:
        raise ArtifactError(f"{folder}: {bad:.0f} pairs are not finite")
    return found


def _look_again(of: Making, params: Params, out: Path, grid: Tensor) -> Events:
    """Checks the pairs on disk, makes some of them again, and stores the findings beside them.

    Raises:
        ArtifactError: if a pair is not finite, or if the teacher carries the stored noise to other samples.
    """
    teacher, parts = of.teacher, map_pairs(out)[0]
    found, pairs = _checked(out, parts, teacher), Sharded(parts)
    x0, x1, label = pairs.at(torch.randperm(len(pairs), generator=generator(0, "pairs/again"))[:AGAIN])
    field = teacher.guide(eager(teacher).field(params.precision), of.section.guidance)
    on_device = None if label is None else label.to(teacher.device)
    points = [x.cpu() for x in trajectory(field, x0.float().to(teacher.device), grid, of.how.method, on_device)]
    stored = floats(x1).flatten(1)
    made = floats(quantise(points[-1])) if x1.dtype == torch.uint8 else points[-1]
    off = float(((made.flatten(1) - stored).norm(dim=1) / stored.norm(dim=1).clamp(min=1)).median())
    if not off < TOLERANCE:
        raise ArtifactError(f"{out}: pairs made again end {off:.2g} of their size away from those stored")
    curvature = straightness(points, grid)
    numbers = found.numbers | {"again": off} | quantiles("curvature", curvature)
    bins = found.bins + histogram("curvature", curvature)
    yield from _record(out, f"couple {of.name}", Quality(numbers, bins), prefix="pairs")


def _record(folder: Path, what: str, found: Quality, prefix: str) -> Events:
    """Stores what was found of pairs beside them, and notes what is suspicious."""
    for line in suspicions(found.numbers):
        yield Note(f"{what}: {line}")
    write_json(folder / "quality.json", {key: float(f"{value:.6g}") for key, value in found.numbers.items()})
    write_table(folder / "histograms.csv", ("what", "left", "right", "count"), found.bins)
    yield Metrics(0, {f"couplings/{prefix}.{key}": value for key, value in found.numbers.items()})
