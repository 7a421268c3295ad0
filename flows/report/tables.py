"""Tables of the report, as the texts a reader sees: a value with as many digits as its error allows."""

from collections.abc import Sequence
from math import floor, isfinite, log10
from typing import NamedTuple

import pandas as pd

from flows import layout
from flows.report.figures import Cost
from flows.report.results import OF_FLOWS, Results, run_name
from fmcore.score.pair_quality import FAR
from fmcore.verdict import Choice

# Of couplings: key in quality.json, what it is, and what is expected of it.
QUALITY = (
    ("not_finite", "pairs with a value that is not finite", "0"),
    ("x0_mean", "mean of x0", "0"),
    ("x0_square", "mean square of x0", "1"),
    ("x0_fourth", "mean fourth power of x0", "3"),
    ("x0_neighbours", "mean product of neighbours in x0", "0"),
    ("cost", "transport cost, mean", "falls from round to round"),
    ("cost_05", "transport cost, 5 % are below", ""),
    ("cost_50", "transport cost, median", ""),
    ("cost_95", "transport cost, 5 % are above", ""),
    ("cost_max", "transport cost, largest", ""),
    ("outliers", "share of pairs with an outlying cost", "near 0"),
    ("class_least", "rarest class, 1 is its fair share", "1"),
    ("class_most", "commonest class, 1 is its fair share", "1"),
    ("again", "made again: distance to the stored pair, relative", "near 0"),
    ("curvature", "straightness of the pairs' paths, mean", "falls from round to round"),
    ("curvature_50", "straightness of the pairs' paths, median", ""),
    ("curvature_95", "straightness of the pairs' paths, 5 % are above", ""),
)
MEASURES = {
    "straightness": "straightness",
    "transport_cost": "transport cost, own paths",
    "reconstruction_real": "reconstruction, real",
    "reconstruction_generated": "reconstruction, generated",
    "bits_per_dim": "bits per dimension",
    "nats": "nats",
    "memorisation": "memorisation",
}


class Table(NamedTuple):
    """Texts in rows; the first `labels` columns name the row, cells in `strong` (row, column) stand out."""

    name: str
    columns: list[str]
    rows: list[list[str]]
    labels: int
    strong: frozenset[tuple[int, int]] = frozenset()


def plus_minus(value: float, std: float) -> str:
    """A value and its standard error with two digits, or a value without an error with four digits.

    >>> plus_minus(0.37314, 0.0123)
    '0.373 ± 0.012'
    >>> plus_minus(73.3831, 0.0384)
    '73.383 ± 0.038'
    >>> plus_minus(0.00000231, 0.00000012)
    '2.31e-06 ± 0.12e-06'
    >>> plus_minus(1.5, float("nan"))
    '1.5'
    """
    if not (isfinite(std) and std > 0):
        return f"{value:.4g}"
    tens = floor(log10(float(f"{std:.1e}")))
    if tens > -6:
        return f"{value:.{max(0, 1 - tens)}f} ± {std:.{max(0, 1 - tens)}f}"
    power = max(tens, floor(log10(abs(value)))) if value else tens
    digits = power - tens + 1
    return f"{value / 10**power:.{digits}f}e{power:+03d} ± {std / 10**power:.{digits}f}e{power:+03d}"


def _cell(rows: pd.DataFrame) -> str:
    return plus_minus(float(rows.value.iloc[0]), float(rows["std"].iloc[0])) if len(rows) else ""


def scores_table(curves: pd.DataFrame) -> Table:
    """The headline by model and solver, against NFE; the lowest of each column stands out."""
    nfes = sorted(curves.nfe.unique().tolist())
    rows: list[list[str]] = []
    strong = set()
    for (model, solver, grid), runs in curves.groupby(["model", "solver", "grid"], sort=False):
        name = run_name(str(solver), str(grid), curves)
        rows.append([str(model), name, *(_cell(runs[runs.nfe == nfe]) for nfe in nfes)])
        for x, nfe in enumerate(nfes):
            if (runs[runs.nfe == nfe].value <= curves[curves.nfe == nfe].value.min()).any():
                strong.add((len(rows) - 1, 2 + x))
    return Table("scores", ["model", "solver", *(f"{nfe} NFE" for nfe in nfes)], rows, 2, frozenset(strong))


def others_table(results: Results, curves: pd.DataFrame) -> Table | None:
    """All other metrics of every run and of the couplings, if there are any."""
    table = results.scores[~results.scores.metric.isin([results.headline, *OF_FLOWS])]
    if not len(table):
        return None
    metrics = list(table.metric.unique())
    rows = []
    for (model, solver, grid, nfe), found in table.groupby(["model", "solver", "grid", "nfe"], sort=False):
        cells = [_cell(found[found.metric == metric]) for metric in metrics]
        rows.append([str(model), run_name(str(solver), str(grid), curves), str(nfe), *cells])
    return Table("metrics", ["model", "solver", "NFE", *metrics], rows, 2)


def flows_table(results: Results) -> Table:
    """The metrics with one number a model, and the transport cost of the couplings that it learnt."""
    table = results.of_models
    metrics = [m for m in MEASURES if (table.metric == m).any()]
    learnt = {**{name: name for name in results.rounds}, "student": results.params.distill.couplings}
    rows = []
    for model in results.models:
        mine = table[table.model == model]
        cost = f"{results.quality[learnt[model]]['cost']:.4g}" if model in learnt else ""
        rows.append([model, cost, *(_cell(mine[mine.metric == metric]) for metric in metrics)])
    return Table("flows", ["model", "transport cost, pairs learnt", *(MEASURES[m] for m in metrics)], rows, 1)


def transport_costs(results: Results) -> list[Cost]:
    """Each flow with the cost of the pairs it learnt, None for the base, and that of its own paths."""
    rows = results.of_models[results.of_models.metric == "transport_cost"]
    return [
        Cost(model, results.quality[model]["cost"] if model in results.quality else None, value, std)
        for model, value, std in zip(rows.model.tolist(), rows.value.tolist(), rows["std"].tolist(), strict=True)
    ]


def pairs_table(results: Results) -> Table:
    """The quality of each round's stored pairs; numbers that noise would not have stand out."""
    rows: list[list[str]] = []
    strong = set()
    for key, name, expected in QUALITY:
        cells = []
        for x, of_round in enumerate(results.quality.values()):
            text = f"{of_round[key]:.4g}" if key in of_round else ""
            if f"{key}_sigmas" in of_round:
                off = of_round[f"{key}_sigmas"]
                text += f" ({off:+.1f} σ)"
                if not abs(off) < FAR:
                    strong.add((len(rows), 1 + x))
            cells.append(text)
        if any(cells):
            rows.append([name, *cells, expected])
    distance = results.scores[results.scores.metric == results.headline]
    cells = [_cell(distance[distance.model == layout.coupled(name)]) for name in results.rounds]
    rows.append([f"distance to the data ({results.headline})", *cells, "that of the teacher"])
    return Table("pairs", ["couplings", *results.rounds, "expected"], rows, 1, frozenset(strong))


def best_table(found: Sequence[Choice]) -> Table:
    """Which model to take at which budget, and how to sample it."""
    rows = [
        [
            str(budget),
            run.name,
            run.how,
            str(run.nfe),
            plus_minus(run.score.value, run.score.std),
            ", ".join(as_good),
        ]
        for budget, run, as_good in found
    ]
    return Table("best", ["NFE at most", "take", "how", "at NFE", "distance", "as good"], rows, 3)
