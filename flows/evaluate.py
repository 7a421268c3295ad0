"""Stage `evaluate@MODEL`: one model's scores over solvers and NFE, and samples to look at.

All models and all NFE start from the same noise, so differences between scores are far less noisy than the
scores themselves, and a column of the sample grid shows one noise through every model.
"""

import csv
import io
from collections.abc import Generator, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flows import layout
from flows.events import Event, Events, Metrics, Picture, Progress, Table
from flows.params import Evaluate, Params
from flows.setup import device_of
from flows.work import publish, workspace
from fmcore.features import load_extractor, load_stats
from fmcore.fields import Counted
from fmcore.metrics import (
    POINT_METRICS,
    Estimate,
    Stats,
    frechet_estimate,
    group_sizes,
    mean_estimate,
    stats,
    straightness,
    transport_cost,
)
from fmcore.pictures import sample_picture
from fmcore.pixels import dequantise, quantise
from fmcore.reflow import draw
from fmcore.solvers import ADAPTIVE, SOLVERS, integrate_adaptive, steps_for, trajectory
from fmcore.store import Model, load_model, read_tensors, write_file, write_tensors
from fmcore.times import uniform_grid

SHOWN_IMAGES, SHOWN_POINTS, TRACED_POINTS = 16, 2000, 200


class Row(NamedTuple):
    """One line of scores.csv; `round` counts the reflow rounds behind the model, `std` is a standard error."""

    model: str
    round: int
    solver: str
    nfe: int
    metric: str
    value: float
    std: float
    n_samples: int
    n_reference: int
    extractor: str
    extractor_sha256: str
    seed: int


class Run(NamedTuple):
    """One way to sample: a solver and, but for the adaptive one, its NFE."""

    solver: str
    nfe: int | None


class Score(NamedTuple):
    """A distance to the data and what it was measured with."""

    metric: str
    estimate: Estimate
    n_reference: int
    extractor: str
    digest: str


class Result(NamedTuple):
    """What one run gave: counted NFE, scores, samples to show and, for points on the finest grid, paths."""

    nfe: int
    scores: list[Score]
    shown: Tensor
    paths: Tensor | None


class Scorer(Protocol):
    """Takes samples batch by batch, then says how far they are from the data."""

    def add(self, x1: Tensor) -> None: ...

    def scores(self) -> list[Score]: ...


class ImageScorer:
    """Frechet distance on the extractor's features; keeps sums only."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.extractor = load_extractor(layout.FEATURES, device)
        self.reference = load_stats(layout.FEATURES / "reference.safetensors")
        self.sizes, self.groups = group_sizes(count), list[Stats]()
        self.waiting: list[Tensor] = []

    def add(self, x1: Tensor) -> None:
        """Adds images in [-1, 1]."""
        self.waiting.append(self.extractor(quantise(x1)).cpu())
        features = torch.cat(self.waiting)
        while len(self.groups) < len(self.sizes) and len(features) >= (size := self.sizes[len(self.groups)]):
            self.groups.append(stats(features[:size]))
            features = features[size:]
        self.waiting = [features]

    def scores(self) -> list[Score]:
        """The Frechet distance of all images added."""
        estimate = frechet_estimate(self.groups, self.reference)
        ex = self.extractor
        return [Score(ex.metric, estimate, self.reference.count, ex.metric.split("_", 1)[1], ex.digest)]


class PointScorer:
    """Every distance of `POINT_METRICS` to the points held out."""

    def __init__(self) -> None:
        self.reference = read_tensors(layout.FEATURES / "reference.safetensors")["x1"]
        self.points: list[Tensor] = []

    def add(self, x1: Tensor) -> None:
        """Adds points."""
        self.points.append(x1.cpu())

    def scores(self) -> list[Score]:
        """The distances of all points added."""
        x = torch.cat(self.points)
        count = min(len(x), len(self.reference))
        return [
            Score(name, metric(x, self.reference), count, "points", "") for name, metric in POINT_METRICS.items()
        ]


def runs_for(model: Model, section: Evaluate) -> list[Run]:
    """What a model is scored on; a student that knows k times only, on Euler steps between those."""
    k = model.manifest.get("grid")
    if k is not None:
        return [Run("euler", nfe) for nfe in sorted({k, *section.solvers["euler"]}) if k % nfe == 0]
    fixed = [Run(solver, nfe) for solver, nfes in section.solvers.items() for nfe in sorted(nfes)]
    return fixed + ([Run(ADAPTIVE, None)] if section.dopri5 else [])


def evaluate(params: Params, name: str) -> Events:
    """Scores model `name`; writes `scores.csv` and `samples.safetensors`."""
    device = device_of(params)
    recipe = params.model_dump(mode="json", include={"seed", "device", "precision", "data", "evaluate"})
    inputs = [layout.model(name), layout.FEATURES]
    model = load_model(inputs[0], device)
    labels = params.data.load().label if model.num_classes is not None else None
    runs = runs_for(model, params.evaluate)
    # Straightness needs a flow: a student has no field between the times it knows.
    bent = None if "grid" in model.manifest else max(r for r in runs if r.solver == "euler")
    rows: list[Row] = []
    shown: dict[str, Tensor] = {}
    with workspace(f"evaluate@{name}", recipe, inputs) as work:
        out = work / "out"
        total = len(runs) * params.evaluate.samples
        yield Progress(f"score {name}", 0, total)
        for i, run in enumerate(runs):
            count = params.evaluate.samples
            scorer: Scorer = PointScorer() if params.is_points else ImageScorer(count, device)
            batches = _sample(model, params, run, labels)
            result = yield from _run(batches, scorer, name, i * count, total, bends=run == bent)
            for score in result.scores:
                row = Row(
                    name,
                    model.manifest["rounds"],
                    run.solver,
                    result.nfe,
                    score.metric,
                    float(f"{score.estimate.value:.6g}"),
                    float(f"{score.estimate.std:.3g}"),
                    count,
                    score.n_reference,
                    score.extractor,
                    score.digest,
                    params.seed,
                )
                rows.append(row)
                yield Metrics(result.nfe, {f"{score.metric}.{run.solver}": row.value})
            if run.solver == "euler":
                key = f"euler.{result.nfe:04d}"
                shown[key] = result.shown
                sample_picture(_floats(result.shown), work / f"{key}.png")
                yield Picture(f"samples-nfe-{result.nfe:04d}", work / f"{key}.png")
            if result.paths is not None:
                shown["paths"] = result.paths
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
        write_file(out / "scores.csv", text.getvalue().encode())
        write_tensors(out / "samples.safetensors", shown)
        publish(out, layout.scores(name))
        yield Table("scores", [dict(zip(Row._fields[:7], row[:7], strict=True)) for row in rows])


def _floats(shown: Tensor) -> Tensor:
    return dequantise(shown) if shown.dtype == torch.uint8 else shown


class Batch(NamedTuple):
    """One batch of trajectories, every knot of it for fixed-step solvers, both ends for the adaptive one."""

    points: list[Tensor]
    nfe: int


def _sample(model: Model, params: Params, run: Run, labels: Tensor | None) -> Iterator[Batch]:
    """Trajectories of the evaluation noise in fixed batches; memory holds one batch."""
    section, device = params.evaluate, model.device
    for first in range(0, section.samples, section.batch):
        count = min(section.batch, section.samples - first)
        x0, drawn = draw(first, count, shape=model.shape, seed=params.seed, purpose="evaluate", labels=labels)
        x0, label = x0.to(device), None if drawn is None else drawn.to(device)
        field = Counted(model.field(params.precision))
        if run.nfe is None:
            assert section.dopri5 is not None
            rtol, atol = section.dopri5.rtol, section.dopri5.atol
            yield Batch([x0, integrate_adaptive(field, x0, rtol=rtol, atol=atol, label=label)], field.nfe)
        else:
            tableau = SOLVERS[run.solver]
            grid = uniform_grid(steps_for(tableau, run.nfe))
            points = list(trajectory(field, x0, grid, tableau, label))
            yield Batch(points, field.nfe)


def _run(
    batches: Iterator[Batch], scorer: Scorer, name: str, before: int, total: int, *, bends: bool
) -> Generator[Event, None, Result]:
    """Scores one run's batches, reporting progress on the way."""
    done, evaluations = 0, 0
    shown: list[Tensor] = []
    paths: list[Tensor] = []
    bend: list[Tensor] = []
    cost: list[Tensor] = []
    for batch in batches:
        x1 = batch.points[-1]
        images = x1.ndim == 4
        if not torch.isfinite(x1).all():
            raise FloatingPointError(f"{name} made samples that are not finite: it diverged")
        scorer.add(x1)
        missing = (SHOWN_IMAGES if images else SHOWN_POINTS) - sum(map(len, shown))
        shown.append((quantise(x1[:missing]) if images else x1[:missing]).cpu())
        if bends:
            bend.append(straightness(batch.points).cpu())
            cost.append(transport_cost(batch.points[0], x1).cpu())
            if not images and not paths:
                paths.append(torch.stack([point[:TRACED_POINTS] for point in batch.points]).cpu())
        done += len(x1)
        evaluations += batch.nfe * len(x1)
        yield Progress(f"score {name}", before + done, total)
    scores = scorer.scores()
    if bends:
        for metric, values in (("straightness", bend), ("transport_cost", cost)):
            scores.append(Score(metric, mean_estimate(torch.cat(values)), 0, "", ""))
    return Result(round(evaluations / done), scores, torch.cat(shown), paths[0] if paths else None)
