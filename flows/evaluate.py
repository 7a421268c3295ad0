"""Stage `evaluate@MODEL`: one model's scores over solvers and NFE, and samples to look at.

All models and all NFE start from the same noise, so differences between scores are far less noisy than the
scores themselves, and a column of the sample grid shows one noise through every model.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flows import layout
from flows.events import Events, Metrics, Picture, Progress, Table
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
from fmcore.solvers import ADAPTIVE, SOLVERS, integrate, integrate_adaptive, steps_for, trajectory
from fmcore.store import Model, load_model, read_json, read_tensors, write_file, write_json, write_tensors
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


class Scorer(Protocol):
    """Takes samples batch by batch, then says how far they are from the data."""

    def add(self, x1: Tensor) -> None: ...

    def scores(self) -> list[Score]: ...


class ImageScorer:
    """Frechet distance on the extractor's features; keeps sums only."""

    def __init__(self, count: int, device: torch.device, weights: str | None) -> None:
        self.extractor = load_extractor(layout.FEATURES, device, weights)
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
        found = []
        for name, metric in POINT_METRICS.items():
            estimate = metric(x, self.reference)
            found.append(Score(name, estimate, estimate.samples, "points", ""))
        return found


def runs_for(model: Model, section: Evaluate) -> list[Run]:
    """What a model is scored on; a student that knows k times only, on Euler steps between those."""
    k = model.manifest.get("grid")
    if k is not None:
        return [Run("euler", nfe) for nfe in sorted({k, *section.solvers["euler"]}) if k % nfe == 0]
    fixed = [Run(solver, nfe) for solver, nfes in section.solvers.items() for nfe in sorted(nfes)]
    return fixed + ([Run(ADAPTIVE, None)] if section.dopri5 else [])


def evaluate(params: Params, name: str) -> Events:
    """Scores model `name`; writes `scores.csv` and `samples.safetensors`. A kill loses one run."""
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
    count = params.evaluate.samples
    with workspace(f"evaluate@{name}", recipe, inputs) as work:
        total = len(runs) * count
        done = sum(count for run in runs if _kept(work, run).exists())
        yield Progress(f"score {name}", done, total, _unit(params))
        for run in runs:
            if not _kept(work, run).exists():
                scorer = PointScorer() if params.is_points else ImageScorer(count, device, params.features.weights)
                batches = _sample(model, params, run, labels, bends=run == bent)
                kept = _kept(work, run)
                for scored in _score(batches, scorer, model, params, name, run, kept, bends=run == bent):
                    yield Progress(f"score {name}", done + scored, total, _unit(params))
                done += count
            found = [Row(*row) for row in read_json(_kept(work, run))["rows"]]
            tensors = read_tensors(_kept(work, run).with_suffix(".safetensors"))
            rows += found
            for row in found:
                yield Metrics(row.nfe, {f"{row.metric}.{row.solver}": row.value})
            if run.solver == "euler":
                shown[f"euler.{run.nfe:04d}"] = tensors["shown"]
                picture = work / f"samples-{run.nfe:04d}.png"
                sample_picture(_floats(tensors["shown"]), picture)
                yield Picture(f"samples-nfe-{run.nfe:04d}", picture)
            if "paths" in tensors:
                shown["paths"] = tensors["paths"]
        out = work / "out"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
        write_file(out / "scores.csv", text.getvalue().encode())
        write_tensors(out / "samples.safetensors", shown)
        publish(out, layout.scores(name))
        yield Table("scores", [dict(zip(Row._fields[:7], row[:7], strict=True)) for row in rows])


def _kept(work: Path, run: Run) -> Path:
    return work / f"{run.solver}-{run.nfe or 0:04d}.json"


def _unit(params: Params) -> str:
    return "points" if params.is_points else "images"


def _floats(shown: Tensor) -> Tensor:
    return dequantise(shown) if shown.dtype == torch.uint8 else shown


class Batch(NamedTuple):
    """Where one batch began and ended, what it cost, and the knots between if they were asked for."""

    x0: Tensor
    x1: Tensor
    nfe: int
    points: list[Tensor]


def _sample(model: Model, params: Params, run: Run, labels: Tensor | None, *, bends: bool) -> Iterator[Batch]:
    """Samples from the evaluation noise in fixed batches; memory holds one, with its whole paths if `bends`."""
    section, device = params.evaluate, model.device
    for first in range(0, section.samples, section.batch):
        count = min(section.batch, section.samples - first)
        x0, drawn = draw(first, count, shape=model.shape, seed=params.seed, purpose="evaluate", labels=labels)
        x0, label = x0.to(device), None if drawn is None else drawn.to(device)
        field = Counted(model.field(params.precision))
        points: list[Tensor] = []
        if run.nfe is None:
            assert section.dopri5 is not None
            rtol, atol = section.dopri5.rtol, section.dopri5.atol
            x1 = integrate_adaptive(field, x0, rtol=rtol, atol=atol, label=label)
        else:
            tableau = SOLVERS[run.solver]
            grid = uniform_grid(steps_for(tableau, run.nfe))
            if bends:
                points = list(trajectory(field, x0, grid, tableau, label))
            x1 = points[-1] if bends else integrate(field, x0, grid, tableau, label)
        yield Batch(x0, x1, field.nfe, points)


def _score(
    batches: Iterator[Batch],
    scorer: Scorer,
    model: Model,
    params: Params,
    name: str,
    run: Run,
    kept: Path,
    *,
    bends: bool,
) -> Iterator[int]:
    """Scores one run into the file `kept`, its pictures' tensors beside it; yields the samples done so far."""
    done, evaluations = 0, 0
    shown: list[Tensor] = []
    bend: list[Tensor] = []
    cost: list[Tensor] = []
    tensors: dict[str, Tensor] = {}
    for batch in batches:
        x1 = batch.x1
        if not torch.isfinite(x1).all():
            raise FloatingPointError(f"{name} made samples that are not finite: it diverged")
        scorer.add(x1)
        missing = (SHOWN_POINTS if params.is_points else SHOWN_IMAGES) - sum(map(len, shown))
        shown.append((x1[:missing] if params.is_points else quantise(x1[:missing])).cpu())
        if bends:
            bend.append(straightness(batch.points).cpu())
            cost.append(transport_cost(batch.x0, x1).cpu())
            if params.is_points and "paths" not in tensors:
                tensors["paths"] = torch.stack([point[:TRACED_POINTS] for point in batch.points]).cpu()
        done += len(x1)
        evaluations += batch.nfe * len(x1)
        yield done
    scores = scorer.scores()
    if bends:
        for metric, values in (("straightness", bend), ("transport_cost", cost)):
            scores.append(Score(metric, mean_estimate(torch.cat(values)), 0, "", ""))
    write_tensors(kept.with_suffix(".safetensors"), {**tensors, "shown": torch.cat(shown)})
    rows = [
        Row(
            name,
            model.manifest["rounds"],
            run.solver,
            round(evaluations / done),
            score.metric,
            float(f"{score.estimate.value:.6g}"),
            float(f"{score.estimate.std:.3g}"),
            score.estimate.samples,
            score.n_reference,
            score.extractor,
            score.digest,
            params.seed,
        )
        for score in scores
    ]
    write_json(kept, {"rows": [list(row) for row in rows]})
