"""Stage `evaluate@MODEL`: one model's scores over solvers and NFE, and samples to look at.

All models and all NFE start from the same noise, so differences between scores are far less noisy than the
scores themselves, and a column of the sample grid shows one noise through every model.
"""

import csv
import io
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flows import layout
from flows.events import Events, Metrics, Picture, Progress, Table
from flows.params import Evaluate, Params
from flows.setup import device_of
from flows.work import publish, workspace
from fmcore.features import load_extractor, load_reference
from fmcore.fields import Counted
from fmcore.likelihood import bits_per_dim, log_likelihood, uniform_dequantise
from fmcore.metrics import mean_estimate, straightness, transport_cost
from fmcore.pictures import sample_picture
from fmcore.pixels import dequantise, quantise
from fmcore.reflow import draw
from fmcore.rng import generator
from fmcore.scoring import ImageScorer, PointScorer, Score, Scorer
from fmcore.solvers import ADAPTIVE, SOLVERS, integrate, integrate_adaptive, seeded, steps_for, trajectory
from fmcore.store import Model, load_model, read_json, read_tensors, write_file, write_json, write_tensors
from fmcore.times import FixedGrid, UniformGrid

SHOWN_IMAGES, SHOWN_POINTS, TRACED_POINTS = 16, 2000, 200
LIKELIHOOD_BATCH = 256  # the graph of the whole network is kept for the divergence


class Row(NamedTuple):
    """One line of scores.csv; `round` counts the reflow rounds behind the model, `std` is a standard error."""

    model: str
    round: int
    solver: str
    grid: str
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


def scorer_of(params: Params, device: torch.device) -> Scorer:
    """What the samples of these parameters are scored with."""
    section, file = params.evaluate, layout.FEATURES / "reference.safetensors"
    if params.is_points:
        return PointScorer(read_tensors(file)["x1"], section.metrics, params.seed)
    extractor = load_extractor(layout.FEATURES, device, params.features.weights)
    return ImageScorer(section.samples, extractor, load_reference(file), section.metrics, params.seed)


def runs_for(model: Model, section: Evaluate) -> list[Run]:
    """What a model is scored on; a student that knows k times only, on uniform Euler steps between those."""
    k = model.manifest.get("grid")
    if k is not None:
        return [Run("euler", nfe) for nfe in sorted({k, *section.solvers["euler"]}) if k % nfe == 0]
    # The score that a stochastic solver needs is in the velocity only if noise and data were paired independently.
    recipe = model.manifest.get("recipe", {}).get("base", {})
    paired = model.manifest["rounds"] or recipe.get("coupling", "independent") != "independent"
    solvers = {name for name in section.solvers if not (paired and SOLVERS[name].stochastic)}
    fixed = [Run(name, nfe) for name, nfes in section.solvers.items() if name in solvers for nfe in sorted(nfes)]
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
                scorer = scorer_of(params, device)
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
        if params.evaluate.likelihood and "grid" not in model.manifest:
            kept = work / "likelihood.json"
            if not kept.exists():
                yield from _likelihood(model, params, name, kept)
            (row,) = (Row(*row) for row in read_json(kept)["rows"])
            rows.append(row)
            yield Metrics(row.nfe, {row.metric: row.value})
        out = work / "out"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
        write_file(out / "scores.csv", text.getvalue().encode())
        write_tensors(out / "samples.safetensors", shown)
        publish(out, layout.scores(name))
        yield Table("scores", [dict(zip(Row._fields[:8], row[:8], strict=True)) for row in rows])


def _kept(work: Path, run: Run) -> Path:
    return work / f"{run.solver}-{run.nfe or 0:04d}.json"


def _unit(params: Params) -> str:
    return "points" if params.is_points else "images"


def _floats(shown: Tensor) -> Tensor:
    return dequantise(shown) if shown.dtype == torch.uint8 else shown


def grid_of(model: Model, section: Evaluate) -> FixedGrid:
    """The time grid a model is scored on."""
    return UniformGrid() if "grid" in model.manifest else section.grid


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
            solver = seeded(SOLVERS[run.solver], params.seed, first)
            grid = grid_of(model, section)(steps_for(solver, run.nfe))
            if bends:
                points = list(trajectory(field, x0, grid, solver, label))
            x1 = points[-1] if bends else integrate(field, x0, grid, solver, label)
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
        scorer.add(x1 if params.is_points else quantise(x1))
        missing = (SHOWN_POINTS if params.is_points else SHOWN_IMAGES) - sum(map(len, shown))
        shown.append((x1[:missing] if params.is_points else quantise(x1[:missing])).cpu())
        if bends:
            grid = grid_of(model, params.evaluate)(len(batch.points) - 1)
            bend.append(straightness(batch.points, grid).cpu())
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
    grid_name = grid_of(model, params.evaluate).name if run.nfe else ""
    _keep(kept, scores, model, name, run.solver, grid_name, round(evaluations / done), params.seed)


def _keep(
    kept: Path, scores: list[Score], model: Model, name: str, solver: str, grid: str, nfe: int, seed: int
) -> None:
    """Writes the rows of some scores into the file `kept`."""
    rows = [
        Row(
            name,
            model.manifest["rounds"],
            solver,
            grid,
            nfe,
            score.metric,
            float(f"{score.estimate.value:.6g}"),
            float(f"{score.estimate.std:.3g}"),
            score.estimate.samples,
            score.n_reference,
            score.extractor,
            score.digest,
            seed,
        )
        for score in scores
    ]
    write_json(kept, {"rows": [list(row) for row in rows]})


def _likelihood(model: Model, params: Params, name: str, kept: Path) -> Events:
    """Scores the log-likelihood of real samples into the file `kept`."""
    section = params.evaluate.likelihood
    assert section is not None
    data, solver = params.data.load(), SOLVERS[section.solver]
    field = model.field("fp32")  # under autocast the Jacobian would have bfloat16's three digits
    grid = grid_of(model, params.evaluate)(steps_for(solver, section.nfe))
    # Any of them: files come sorted by class.
    chosen = torch.randperm(len(data.reference), generator=generator(params.seed, "likelihood/rows"))
    chosen = chosen[: section.samples]
    x1 = data.reference[chosen]
    labels = None if model.num_classes is None or data.label is None else data.label[chosen]
    found: list[Tensor] = []
    batch = min(params.evaluate.batch, LIKELIHOOD_BATCH)
    yield Progress(f"likelihood {name}", 0, len(x1), _unit(params))
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        x = _floats(x1[rows])
        if data.bin_width is not None:
            x = uniform_dequantise(x, data.bin_width, seed=params.seed, start=first)
        label = None if labels is None else labels[rows].to(model.device)
        x = x.to(model.device)
        log_p = log_likelihood(
            field, x, grid, solver, label=label, probes=section.probes, seed=params.seed, start=first
        ).cpu()
        found.append(-log_p if data.bin_width is None else bits_per_dim(log_p, prod(model.shape), data.bin_width))
        yield Progress(f"likelihood {name}", min(first + batch, len(x1)), len(x1), _unit(params))
    metric = "nats" if data.bin_width is None else "bits_per_dim"
    score = Score(metric, mean_estimate(torch.cat(found)), 0, "", "")
    grid_name = grid_of(model, params.evaluate).name
    _keep(kept, [score], model, name, section.solver, grid_name, section.nfe, params.seed)
