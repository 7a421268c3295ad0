"""One model over solvers, grids and NFE: which runs there are, their samples, and the rows of scores.csv.

All models and all runs start from the same noise, so differences between scores are far less noisy than the
scores themselves. Each repeat has a range of noise of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flows.params import Evaluate, Params
from flows.work import write_table
from fmcore.fields import Counted, VelocityField
from fmcore.metrics import Estimate, pooled
from fmcore.reflow import draw
from fmcore.scoring import Score
from fmcore.solvers import ADAPTIVE, SOLVERS, integrate_adaptive, seeded, solve, steps_for, trajectory
from fmcore.speed import moved
from fmcore.store import Model, read_json, write_json
from fmcore.times import Grid, OptimisedGrid, UniformGrid

NOISE_BYTES = 2**28  # of noise, up to which it is kept for the next run instead of being drawn again
PATH_BYTES = 2**30  # of whole paths on the device at a time


class Row(NamedTuple):
    """One line of scores.csv.

    `round` counts the reflow rounds behind the model, `std` is the standard error of the value, `spread` the
    standard deviation between the repeats, None for a single one.
    """

    model: str
    round: int
    solver: str
    grid: str
    nfe: int
    metric: str
    value: float
    std: float
    spread: float | None
    repeats: int
    n_samples: int
    n_reference: int
    extractor: str
    extractor_sha256: str
    seed: int


class Run(NamedTuple):
    """One way to sample: a solver and, but for the adaptive one, its grid and NFE."""

    solver: str
    grid: Grid | None = None
    nfe: int = 0

    @property
    def grid_name(self) -> str:
        """Empty for the adaptive solver, which chooses its own steps."""
        return "" if self.grid is None else self.grid.name

    def knots(self) -> Tensor:
        """The grid of this run."""
        assert self.grid is not None
        assert not isinstance(self.grid, OptimisedGrid)  # couplings only
        return self.grid(steps_for(SOLVERS[self.solver], self.nfe))


def runs_for(model: Model, section: Evaluate) -> list[Run]:
    """What a model is scored on; a student that knows k times only, on uniform Euler steps between those.

    Two grids may have the same knots, as all do in one step: that run is made once, for the first of them.
    """
    k = model.manifest.get("grid")
    if k is not None:
        return [Run("euler", UniformGrid(), n) for n in sorted({k, *section.solvers["euler"]}) if k % n == 0]
    # The score that a stochastic solver needs is in the velocity only if noise and data were paired independently.
    recipe = model.manifest.get("recipe", {}).get("base", {})
    paired = model.manifest["rounds"] or recipe.get("coupling", "independent") != "independent"
    solvers = {name: nfes for name, nfes in section.solvers.items() if not (paired and SOLVERS[name].stochastic)}
    found: dict[tuple[str, tuple[float, ...]], Run] = {}
    for grid in section.grids:
        for name, nfes in solvers.items():
            for nfe in sorted(nfes):
                run = Run(name, grid, nfe)
                found.setdefault((name, tuple(round(t, 12) for t in run.knots().tolist())), run)
    return list(found.values()) + ([Run(ADAPTIVE)] if section.dopri5 else [])


def finest(runs: Sequence[Run]) -> Run:
    """The Euler run with the most steps on the first grid: what flows are looked at on."""
    return max(
        (run for run in runs if run.solver == "euler" and run.grid == runs[0].grid), key=lambda run: run.nfe
    )


class Batch(NamedTuple):
    """Where one batch began and ended, its classes, what a sample cost, and the knots between if asked for."""

    x0: Tensor
    x1: Tensor
    label: Tensor | None
    nfe: int
    points: list[Tensor]


Noise = Callable[[int, int], tuple[Tensor, Tensor | None]]


def noise_of(model: Model, params: Params, labels: Tensor | None) -> Noise:
    """The noise and classes `(first, count)` that every run of this model starts from, on the model's device."""

    def drawn(first: int, count: int) -> tuple[Tensor, Tensor | None]:
        x0, label = draw(first, count, shape=model.shape, seed=params.seed, purpose="evaluate", labels=labels)
        return moved(x0, model.device), None if label is None else moved(label, model.device)

    section = params.evaluate
    total = 4 * section.samples * section.repeats * prod(model.shape)
    return lru_cache(None if total <= NOISE_BYTES else 0)(drawn)


def sampled(
    field: VelocityField, params: Params, run: Run, repeat: int, noise: Noise, *, bends: bool
) -> Iterator[Batch]:
    """Samples from the noise of a repeat batch by batch; memory holds one, with its whole paths if `bends`."""
    section = params.evaluate
    start, stop, size = repeat * section.samples, (repeat + 1) * section.samples, section.batch
    if bends:
        size = max(1, min(size, PATH_BYTES // (4 * len(run.knots()) * prod(params.data.shape))))
    for first in range(start, stop, size):
        x0, label = noise(first, min(size, stop - first))
        counted = Counted(field)
        points: list[Tensor] = []
        if run.grid is None:
            assert section.dopri5 is not None
            rtol, atol = section.dopri5.rtol, section.dopri5.atol
            x1 = integrate_adaptive(counted, x0, rtol=rtol, atol=atol, label=label)
        else:
            solver = seeded(SOLVERS[run.solver], params.seed, first)
            if bends:
                points = list(trajectory(counted, x0, run.knots(), solver, label))
            x1 = points[-1] if bends else solve(counted, x0, run.knots(), solver, label)
        # Not what was counted: a batch that had to be halved was begun twice.
        yield Batch(x0, x1, label, counted.nfe if run.grid is None else run.nfe, points)


# --- scores on disk -----------------------------------------------------------------------------------------


def keep(path: Path, scores: Sequence[Score], nfe: int) -> None:
    """Writes the scores of one repeat of one run, where a stage that was killed finds them."""
    lines = [[*score._replace(estimate=tuple(score.estimate))] for score in scores]  # type: ignore[arg-type]
    write_json(path, {"scores": lines, "nfe": nfe})


def kept(path: Path) -> tuple[list[Score], int]:
    """Reads what `keep` wrote."""
    found = read_json(path)
    scores = []
    for metric, (value, std, samples, left_out), *rest in found["scores"]:
        scores.append(Score(metric, Estimate(value, std, samples, tuple(left_out)), *rest))
    return scores, found["nfe"]


class Scored(NamedTuple):
    """One line of scores.csv, and the jackknife's values behind its error."""

    row: Row
    left_out: tuple[float, ...]


def rows_of(
    repeats: Sequence[Sequence[Score]], *, model: str, rounds: int, run: Run, nfe: int, seed: int
) -> list[Scored]:
    """The rows of a run: each metric's mean over the repeats."""
    found = []
    for same in zip(*repeats, strict=True):
        estimate, spread = pooled([score.estimate for score in same])
        row = Row(
            model=model,
            round=rounds,
            solver=run.solver,
            grid=run.grid_name,
            nfe=nfe,
            metric=same[0].metric,
            value=_digits(estimate.value, 8),
            std=_digits(estimate.std, 3),
            spread=_digits(spread, 3) if len(same) > 1 else None,
            repeats=len(same),
            n_samples=estimate.samples,
            n_reference=same[0].n_reference,
            extractor=same[0].extractor,
            extractor_sha256=same[0].digest,
            seed=seed,
        )
        found.append(Scored(row, estimate.left_out))
    return found


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def write_scores(folder: Path, scored: Sequence[Scored]) -> None:
    """Writes scores.csv, and jackknife.csv with what differences of two scores need."""
    write_table(folder / "scores.csv", Row._fields, (one.row for one in scored))
    lines = [
        (one.row.solver, one.row.grid, one.row.nfe, one.row.metric, group, _digits(value, 12))
        for one in scored
        for group, value in enumerate(one.left_out)
    ]
    write_table(folder / "jackknife.csv", ("solver", "grid", "nfe", "metric", "group", "value"), lines)
