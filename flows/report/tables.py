"""Tables of the report, as the texts a reader sees: a value with as many digits as its error allows."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from flows import layout
from flows.report.figures import Cost
from flows.report.results import OF_FLOWS, Results, run_name
from flows.report.words import plus_minus, size
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


PHONE = 44  # characters of a table that a phone shows


class Table(NamedTuple):
    """Texts in rows; the first `labels` columns name the row, cells in `strong` (row, column) stand out.

    `groups` are names over columns, each with how many it spans.
    """

    name: str
    columns: list[str]
    rows: list[list[str]]
    labels: int
    strong: frozenset[tuple[int, int]] = frozenset()
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def broad(self) -> bool:
        """Whether it is broader than a phone, as far as the number of its characters tells."""
        longest = [
            max(map(len, (*name.split(), *cells))) for name, *cells in zip(self.columns, *self.rows, strict=True)
        ]
        return sum(longest) + 2 * len(longest) > PHONE


def pruned(table: Table) -> Table:
    """The table without the columns and rows in which nothing stands but their names."""
    rows = [y for y, row in enumerate(table.rows) if any(row[table.labels :])]
    columns = [x for x in range(len(table.columns)) if x < table.labels or any(table.rows[y][x] for y in rows)]
    strong = {(rows.index(y), columns.index(x)) for y, x in table.strong if y in rows and x in columns}
    groups, start = [], 0
    for name, span in table.groups:
        kept = sum(start <= x < start + span for x in columns)
        groups += [(name, kept)] if kept else []
        start += span
    return table._replace(
        columns=[table.columns[x] for x in columns],
        rows=[[table.rows[y][x] for x in columns] for y in rows],
        strong=frozenset(strong),
        groups=tuple(groups),
    )


def _cell(rows: pd.DataFrame) -> str:
    return plus_minus(float(rows.value.iloc[0]), float(rows["std"].iloc[0])) if len(rows) else ""


def scores_table(curves: pd.DataFrame) -> Table:
    """The headline of each model by solver and NFE; the lowest at each NFE stands out."""
    ways = list(dict.fromkeys(zip(curves.solver, curves.grid, strict=True)))
    columns, groups = [], [("", 1)]
    for solver, grid in ways:
        nfes = sorted(curves[(curves.solver == solver) & (curves.grid == grid)].nfe.unique().tolist())
        columns += [(solver, grid, nfe) for nfe in nfes]
        groups.append((run_name(solver, grid, curves), len(nfes)))
    rows: list[list[str]] = []
    strong = set()
    for model, runs in curves.groupby("model", sort=False):
        cells = [str(model)]
        for x, (solver, grid, nfe) in enumerate(columns):
            mine = runs[(runs.solver == solver) & (runs.grid == grid) & (runs.nfe == nfe)]
            cells.append(_cell(mine))
            if (mine.value <= curves[curves.nfe == nfe].value.min()).any():
                strong.add((len(rows), 1 + x))
        rows.append(cells)
    names = ["model", *(f"{nfe} NFE" for _, _, nfe in columns)]
    return Table("scores", names, rows, 1, frozenset(strong), tuple(groups))


def costs_table(points: pd.DataFrame) -> Table:
    """The numbers of the charts of costs."""
    rows = [
        [
            str(row["model"]),
            str(row["nfe"]),
            plus_minus(row["value"], row["std"]),
            size(row["training_passes"]),
            f"{1e3 * row['gflops_per_sample']:,.4g}",
        ]
        for row in points.to_dict("records")
    ]
    columns = ["model", "NFE", "distance", "evaluations to make it", "MFLOP a sample"]
    return Table("costs", columns, rows, 2)


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
    learnt = {
        **{name: name for name in results.rounds},
        **{student: one.of for one in results.pairs_scores for student in one.learners},
    }
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
