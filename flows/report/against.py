"""The report beside another one: of an experiment or a commit, read from git and DVC's cache.

Nothing in the workspace is touched. What another result cannot be compared in is said instead of shown.
"""

import io
import subprocess
from collections.abc import Iterator
from functools import partial
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from flows.layout import REPORTS
from flows.params.files import flattened
from flows.report.figures import INK, WIDE, Chart, chart, colour_of, handle, label_of, legend, log_axis, nfe_axis
from flows.report.results import PARETO_NFE
from flows.report.tables import Table
from flows.report.words import evaluations, number
from fmcore.flow.errors import one_line
from fmcore.verdict import SURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INNER = ("exec", "stash", "celery", "tmp")  # of refs/exps: DVC's own
LOOKED = 5  # experiments, for one with other scores
YARDSTICK = ("metric", "n_samples", "n_reference", "extractor_sha256")


class OtherError(ValueError):
    """There is no such result, or it is not at hand; the message says which."""


class Other(NamedTuple):
    """Another result: its name, curves.csv and scores.csv, and its parameters by dotted key."""

    name: str
    curves: pd.DataFrame
    scores: pd.DataFrame
    params: dict[str, Any]


class Comparison(NamedTuple):
    """What the page shows of another result beside this one."""

    name: str
    sentence: str
    problems: list[str]
    table: Table | None
    chart: Chart | None
    changed: list[tuple[str, str, str]]


def here(root: Path) -> Other:
    """The result in the workspace."""
    curves, scores = ((root / REPORTS / f"{name}.csv").read_text() for name in ("curves", "scores"))
    return _parsed("this", curves, scores, (root / "params.yaml").read_text())


def other(root: Path, rev: str) -> Other:
    """The result of an experiment or a commit.

    Raises:
        OtherError: if git or DVC does not have it.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        files = DVCFileSystem(str(root), rev=rev)
        names = ["reports/curves.csv", "reports/scores.csv", "params.yaml"]
        curves, scores, params = (files.read_text(name, encoding="utf-8") for name in names)
    except (DvcException, SCMError, OSError) as error:
        line = one_line(error)
        raise OtherError(f"{rev}: no report of it is at hand ({line})") from None
    return _parsed(rev, curves, scores, params)


def previous(root: Path, mine: Other) -> Other:
    """The newest experiment with other scores, else the last commit.

    Raises:
        OtherError: if there is none.
    """
    for rev in [*experiments(root)[:LOOKED], "HEAD"]:
        try:
            found = other(root, rev)
        except OtherError as error:
            if rev == "HEAD":
                raise OtherError(f"no experiment with other scores was found; {error}") from None
            continue
        if not found.curves.equals(mine.curves):
            return found
    raise OtherError("no experiment or commit with other scores was found")


def experiments(root: Path) -> list[str]:
    """The names of this repository's experiments, the newest first."""
    command = ["git", "for-each-ref", "--sort=-creatordate", "--format=%(refname)", "refs/exps"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    refs = [line.split("/") for line in done.stdout.splitlines()]
    return [parts[-1] for parts in refs if len(parts) == 5 and parts[2] not in INNER]


def _parsed(name: str, curves: str, scores: str, params: str) -> Other:
    return Other(name, _table_of(curves), _table_of(scores), flattened(YAML(typ="safe").load(params)))


def _table_of(text: str) -> pd.DataFrame:
    texts = ("grid", "extractor", "extractor_sha256")
    return pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(texts, str)).fillna(dict.fromkeys(texts, ""))


def compared(mine: Other, before: Other) -> Comparison:
    """This result beside another one."""
    keys = [
        (key, _short(before.params.get(key, "")), _short(mine.params.get(key, "")))
        for key in sorted(mine.params.keys() | before.params.keys())
        if mine.params.get(key) != before.params.get(key)
    ]
    problems = list(_problems(mine, before))
    if problems:
        return Comparison(before.name, "", problems, None, None, keys)
    ours, theirs = _euler(mine), _euler(before)
    both = ours.merge(theirs, on=["model", "nfe"], suffixes=("", "_before"))
    if not len(both):
        return Comparison(before.name, "", ["no model was scored at the same NFE in both"], None, None, keys)
    paint = partial(_painted, ours=ours, theirs=theirs, name=before.name)
    drawn = chart("against", f"distance against NFE, here and in {before.name}", WIDE, paint)
    return Comparison(before.name, _sentence(both), [], _table(both), drawn, keys)


def _problems(mine: Other, before: Other) -> Iterator[str]:
    """Why distances are not comparable."""
    for key in YARDSTICK:
        ours, theirs = (_yardstick(one)[key] for one in (mine, before))
        if ours != theirs:
            yield f"{key} is {ours or 'none'} here and {theirs or 'none'} there, so distances do not compare"


def _yardstick(one: Other) -> dict[str, Any]:
    row = one.scores[one.scores.metric == one.curves.metric.iloc[0]].iloc[0]
    return {key: row[key] for key in YARDSTICK}


def _euler(one: Other) -> pd.DataFrame:
    """Euler runs, each model's on its first grid."""
    rows = one.curves[one.curves.solver == "euler"]
    return rows[rows.grid == rows.groupby("model", sort=False).grid.transform("first")]


def _change(row: Any) -> tuple[float, bool]:
    """By what share the distance changed, and whether that is more than chance.

    Both errors count in full: the two results may come from other noise.
    """
    change = row.value - row.value_before
    return change / row.value_before, abs(change) > SURE * hypot(row.std, row.std_before)


def _sentence(both: pd.DataFrame) -> str:
    """What happened to the best model at the fewest evaluations."""
    row = next(both[both.nfe == both.nfe.min()].sort_values("value").itertuples())
    share, sure = _change(row)
    start = (
        f"{row.model} at {evaluations(int(row.nfe))}: {number(row.value_before)} before, {number(row.value)} now"
    )
    if not sure:
        return f"{start}, which is within chance."
    return f"{start}, {abs(100 * share):.2g} % {'nearer to' if share < 0 else 'farther from'} the data."


def _table(both: pd.DataFrame) -> Table:
    """Before, now and the change in one cell for each model and NFE; what is beyond chance stands out."""
    nfes = [nfe for nfe in sorted(both.nfe.unique()) if nfe in PARETO_NFE or nfe == both.nfe.max()]
    rows: list[list[str]] = []
    strong = set()
    for model, runs in both.groupby("model", sort=False):
        cells = [str(model)]
        for x, nfe in enumerate(nfes):
            found = list(runs[runs.nfe == nfe].itertuples())
            cells.append("")
            if found:
                share, sure = _change(found[0])
                cells[-1] = f"{number(found[0].value_before)} → {number(found[0].value)} ({100 * share:+.2g} %)"
                strong |= {(len(rows), 1 + x)} if sure else set()
        rows.append(cells)
    return Table("against", ["model", *(f"{nfe} NFE" for nfe in nfes)], rows, 1, frozenset(strong))


def _painted(figure: "Figure", ours: pd.DataFrame, theirs: pd.DataFrame, name: str) -> None:
    axes = figure.add_subplot()
    models = list(dict.fromkeys([*ours.model, *theirs.model]))
    for rows, mark, alpha in ((theirs, "o--", 0.75), (ours, "o-", 1.0)):
        for model, runs in rows.groupby("model", sort=False):
            colour = colour_of(models, str(model))
            face = colour if rows is ours else "none"
            axes.plot(runs.nfe, runs.value, mark, color=colour, alpha=alpha, markerfacecolor=face)
            axes.vlines(runs.nfe, runs.low, runs.high, color=colour, linewidth=1, alpha=alpha)
    nfe_axis(axes, sorted({*ours.nfe, *theirs.nfe}))
    log_axis(axes, "y", min(ours.low.min(), theirs.low.min()), max(ours.high.max(), theirs.high.max()))
    axes.set_ylabel(label_of(ours.metric.iloc[0]))
    handles = [handle(model, colour_of(models, model)) for model in models]
    legend(figure, [*handles, handle("here", INK, "o-"), handle(name, INK, "o--", markerfacecolor="none")])


def _short(value: Any) -> str:
    return str(value) if value != "" else "none"
