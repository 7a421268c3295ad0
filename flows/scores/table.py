"""scores.csv: its rows, and the stored scores of each repeat, which a stage that was killed goes on from."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flows.workshop.workspace import write_table
from fmcore.disk.kept import keep, kept
from fmcore.ode.sampling import Sampling
from fmcore.score.estimates import Estimate, pooled
from fmcore.score.scoring import Score


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


def keep_scores(path: Path, scores: Sequence[Score], nfe: int) -> None:
    """Writes the scores of one repeat of one way to sample, for a stage that was killed to go on from."""
    lines = [[*score._replace(estimate=tuple(score.estimate))] for score in scores]  # type: ignore[arg-type]
    keep(path, {"scores": lines, "nfe": nfe})


def kept_scores(path: Path) -> tuple[list[Score], int]:
    """Reads what `keep_scores` wrote."""
    found = kept(path)
    scores = []
    for metric, (value, std, samples, left_out), *rest in found["scores"]:
        scores.append(Score(metric, Estimate(value, std, samples, tuple(left_out)), *rest))
    return scores, found["nfe"]


class Scored(NamedTuple):
    """One line of scores.csv, and the jackknife's values behind its error."""

    row: Row
    left_out: tuple[float, ...]


def rows_of(
    repeats: Sequence[Sequence[Score]], *, model: str, rounds: int, how: Sampling, nfe: int, seed: int
) -> list[Scored]:
    """The rows of a way to sample: each metric's mean over the repeats."""
    found = []
    for same in zip(*repeats, strict=True):
        estimate, spread = pooled([score.estimate for score in same])
        row = Row(
            model=model,
            round=rounds,
            solver=how.solver,
            grid=how.grid_name,
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
