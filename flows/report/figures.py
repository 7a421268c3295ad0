"""Charts of the report, each drawn once: as SVG for the page and as PNG for everything else.

In the page, text and axes take the colour of the text around them, so a chart suits light and dark pages; the
colours of series are readable on both. SVGs hold no dates, and their bytes depend only on what they show.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from flows.report.hover import Tip, overlay
from flows.report.results import PARETO_NFE, Level, PairsScore, run_name
from flows.report.words import flop_unit, plus_minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INK, PAPER = "#1b1f24", "#fffffe"  # of text and axes, and behind text on lines; the page replaces both by its own
# Contrast of at least 3 : 1 to the page's white and its dark grey; a model keeps its colour in all figures.
COLOURS = (
    *("#2b7de0", "#d9650a", "#12926f", "#c2429b", "#8a63d2"),
    *("#8f7a10", "#d6455d", "#756057", "#6aa117", "#099eae"),
)
# Marker and line of each solver and grid, in the order of the table; a single point has no line anyway.
MARKS = ("o-", "s--", "^:", "D-.", "v--", "X:", "P-.", "*-")
NARROW, WIDE = (4.2, 3.5), (9.0, 4.6)  # inches; at 72 an inch, the first is about a phone's width
CURVE_POINTS = 300  # most points of a training curve
MOST_TOLD = 9  # runs that a tip names
LABELS = {
    "fid_inception": "FID",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "energy_distance": "energy distance",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fmcore",
    "font.size": 9.5,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.14,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


class Chart(NamedTuple):
    """A drawn chart: `svg` goes into the page as it is, `png` is the same on white."""

    name: str
    svg: str
    png: bytes


def colour_of(models: Sequence[str], model: str) -> str:
    """A model's colour."""
    return COLOURS[models.index(model) % len(COLOURS)]


def label_of(metric: str) -> str:
    """What an axis calls a distance."""
    return LABELS.get(metric, f"Frechet distance ({metric})")


def chart(name: str, alt: str, size: tuple[float, float], paint: Callable[["Figure"], list[Tip] | None]) -> Chart:
    """Draws what `paint` puts on a figure, with the tips that it returns.

    `name` keeps the ids of charts apart, `alt` is for screen readers.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        tips = paint(figure) or []
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", facecolor="white", metadata={"Software": None})
        figure.set_layout_engine("none")  # the layout found for the PNG suits the SVG
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        zones = overlay(figure, tips)
    return Chart(name, _inline(svg.getvalue(), name, alt, zones), png.getvalue())


def _inline(svg: str, name: str, alt: str, zones: str) -> str:
    """An SVG file as part of a page: no header, ids of its own, the page's font and text colour.

    With zones that take the focus it is a group of these; else one picture.
    """
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None
    role = "group" if "tabindex" in zones else "img"
    head = f'<svg class="chart" viewBox="{box[1]}" role="{role}" aria-label="{escape(alt)}">'
    body = re.sub(r"^<svg[^>]*>", lambda _: f'{head}<g aria-hidden="true">', body)
    body = re.sub(r"</svg>\s*$", lambda _: f"</g>{zones}</svg>", body)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', lambda m: f"{m[1]}{name}-", body)
    body = re.sub(r"font(-family)?: [^;\"]*?(\d[\d.]*px)? ?'DejaVu Sans'[^;\"]*", _font, body)
    return re.sub(r"\s*\n\s*", "\n", body.replace(INK, "currentColor").replace(PAPER, "var(--paper)"))


def _font(found: "re.Match[str]") -> str:
    return f"font-size: {found[2]}" if found[2] else "font-family: inherit"


# --- axes ---------------------------------------------------------------------------------------------------


def log_axis(axes: "Axes", which: Literal["x", "y"], low: float, high: float) -> None:
    """A log axis whose ticks read as numbers: 1, 2, 5 of each decade, or decades alone if there are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    subs = (1.0,) if high > (100 if which == "x" else 3000) * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(MaxNLocator(5) if high < 5 * low else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def nfe_axis(axes: "Axes", values: Sequence[int]) -> None:
    """A log axis of NFE, with a tick for each value."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(v) for v in values])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations a sample (NFE)")


def handle(label: str, colour: str = INK, mark: str = "-", **more: Any) -> "Line2D":
    """An entry of a legend; `mark` is a marker and a line style, each of which may be absent."""
    from matplotlib.lines import Line2D

    marker = mark[0] if mark[0] not in "-:" else ""
    style: Any = mark.removeprefix(marker) or "none"
    return Line2D([], [], color=colour, marker=marker, linestyle=style, label=label, **more)


def legend(figure: "Figure", handles: Sequence["Line2D"], most: int = 8) -> None:
    """A legend below the axes, row by row in as many columns as fit; matplotlib would fill it by columns."""
    room, widths = figure.get_figwidth() * 72 / 9, [0.62 * len(str(h.get_label())) + 4.6 for h in handles]  # in em
    for columns in range(min(most, len(handles)), 0, -1):
        if sum(max(widths[c::columns]) for c in range(columns)) <= room:
            break
    rows = -(-len(handles) // columns)
    order = [handles[i] for c in range(columns) for r in range(rows) if (i := r * columns + c) < len(handles)]
    figure.legend(handles=order, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.4)


# --- charts -------------------------------------------------------------------------------------------------


def runs_of(curves: pd.DataFrame) -> list[tuple[str, str]]:
    """Solvers and grids in the order of the table."""
    return list(dict.fromkeys(zip(curves.solver, curves.grid, strict=True)))


def quality(
    figure: "Figure", curves: pd.DataFrame, models: Sequence[str], floor: Level | None, pairs: Sequence[PairsScore]
) -> list[Tip]:
    """The headline against NFE, a line a model, with the floor of the data and the pairs that students learnt.

    The line is Euler's on the first grid; other solvers and grids are hollow markers.
    """
    axes = figure.add_subplot()
    runs = runs_of(curves)
    for model in models:
        colour = colour_of(models, model)
        for (solver, grid), rows in curves[curves.model == model].groupby(["solver", "grid"], sort=False):
            rows, i = rows.sort_values("nfe"), runs.index((str(solver), str(grid)))
            mark = MARKS[i % len(MARKS)]
            size = 9 if i == 0 and len(rows) == 1 else 5  # a student's only point
            line: Any = {"markerfacecolor": colour, "linestyle": "-"} if i == 0 else {"markerfacecolor": "none"}
            axes.plot(rows.nfe, rows.value, mark[0], color=colour, markersize=size, **line)
            off = rows.value - rows.low, rows.high - rows.value
            axes.errorbar(rows.nfe, rows.value, off, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5)
            if i == 0:
                axes.fill_between(rows.nfe, rows.low, rows.high, color=colour, alpha=0.25, linewidth=0)
    handles = [handle(model, colour_of(models, model)) for model in models]
    for i, (solver, grid) in list(enumerate(runs))[1:]:
        mark = MARKS[i % len(MARKS)][0]
        handles.append(handle(run_name(solver, grid, curves), INK, mark, markerfacecolor="none"))
    for of, level, learners in pairs:
        colour = colour_of(models, learners[0]) if len(learners) == 1 else INK
        axes.axhline(level.value, color=colour, linestyle=":", linewidth=1.5)
        label = f"the {learners[0]}'s pairs" if len(learners) == 1 else f"students' pairs ({of})"
        handles.append(handle(label, colour, ":", linewidth=1.5))
    low, high = min(curves.low.min(), *(one.level.value for one in pairs)), curves.high.max()
    if floor is not None:
        low = min(low, floor.value)
        _floor(axes, floor)
    fixed = sorted(curves[curves.solver != "dopri5"].nfe.unique().tolist())
    nfe_axis(axes, fixed)
    log_axis(axes, "y", low, high)
    axes.set_ylim(low / 1.25, high * 1.25)
    axes.set_ylabel(label_of(curves.metric.iloc[0]))
    legend(figure, handles)
    return _by_nfe(axes, curves, models)


def _floor(axes: "Axes", floor: Level) -> None:
    axes.axhline(floor.value, color=INK, linestyle="--", linewidth=1)
    text = f"fresh data {floor.value:.2g}"
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    axes.text(0.98, floor.value, text, transform=axes.get_yaxis_transform(), ha="right", va="center", bbox=box)
    if floor.value > 3 * floor.std:
        ends = floor.value - floor.std, floor.value + floor.std
        axes.axhspan(*ends, color=INK, alpha=0.08, linewidth=0)


def _by_nfe(axes: "Axes", curves: pd.DataFrame, models: Sequence[str]) -> list[Tip]:
    """What was measured at each NFE, the nearest first."""
    values, tips = sorted(curves.nfe.unique().tolist()), []
    edges = [values[0] / 2, *((a * b) ** 0.5 for a, b in pairwise(values)), values[-1] * 2]
    for nfe, span in zip(values, pairwise(edges), strict=True):
        rows = curves[curves.nfe == nfe].sort_values("value").to_dict("records")
        lines = []
        for row in rows[:MOST_TOLD]:
            how = run_name(row["solver"], row["grid"], curves)
            how = "" if how.startswith("euler") else f", {how}"
            said = f"{row['model']}{how}: {plus_minus(row['value'], row['std'])}"
            lines.append((colour_of(models, row["model"]), said))
        title = f"{nfe} evaluation{'' if nfe == 1 else 's'}"
        tips.append(Tip(axes, (nfe, rows[0]["value"]), title, lines, span))
    return tips


def pareto(figure: "Figure", points: pd.DataFrame, models: Sequence[str], metric: str) -> list[Tip]:
    """The headline against what the model cost to make: a marker each for few NFE and for the most."""
    axes = figure.add_subplot()
    shown = [nfe for nfe in PARETO_NFE if (points.nfe == nfe).any()]
    markers = dict(zip([*shown, "most"], "os^D", strict=False))
    last = points.loc[points.groupby("model", sort=False).nfe.idxmax()]
    tips = []
    for nfe, marker in markers.items():
        rows = last[~last.nfe.isin(shown)] if nfe == "most" else points[points.nfe == nfe]
        rows = rows.sort_values("training_passes", kind="stable")
        axes.plot(rows.training_passes / 1e6, rows.value, color=INK, alpha=0.25, linewidth=1, zorder=1)
        for row in rows.to_dict("records"):
            passes, colour = row["training_passes"] / 1e6, colour_of(models, row["model"])
            axes.plot(passes, row["value"], marker, color=colour, markersize=7)
            tips.append(_told(axes, passes, row, f"{passes:.3g} million evaluations to make", colour))
    most = int(points.nfe.max())
    handles = [handle(model, colour_of(models, model), "o") for model in models]
    names = {nfe: f"{most} NFE" if nfe == "most" else f"{nfe} NFE" for nfe in markers}
    handles += [handle(names[nfe], INK, marker, markerfacecolor="none") for nfe, marker in markers.items()]
    log_axis(axes, "y", points.value.min(), points.value.max())
    axes.set_xlim(left=0 if points.training_passes.min() > 0 else None)
    axes.set_xlabel("network evaluations to make the model (millions)")
    axes.set_ylabel(label_of(metric))
    legend(figure, handles, 4)
    return tips


def _told(axes: "Axes", x: float, row: Mapping[Any, Any], cost: str, colour: str) -> Tip:
    """What a point of a cost chart tells."""
    lines = [(colour, plus_minus(row["value"], row["std"])), (colour, cost)]
    return Tip(axes, (x, row["value"]), f"{row['model']} at {row['nfe']} NFE", lines)


def sampling_cost(figure: "Figure", points: pd.DataFrame, models: Sequence[str], metric: str) -> list[Tip]:
    """The headline against what a sample costs, and the best there is for each cost."""
    axes = figure.add_subplot()
    scale, unit = flop_unit(points.gflops_per_sample.max())
    front = points.groupby("gflops_per_sample").value.min().cummin()
    axes.step(front.index * scale, front, where="post", color=INK, alpha=0.25, linewidth=5)
    tips = []
    for model in models:
        rows, colour = points[points.model == model], colour_of(models, model)
        axes.plot(rows.gflops_per_sample * scale, rows.value, "o-", color=colour)
        for row in rows.to_dict("records"):
            cost = row["gflops_per_sample"] * scale
            tips.append(_told(axes, cost, row, f"{cost:.3g} {unit} a sample", colour))
    handles = [handle(model, colour_of(models, model), "o-") for model in models]
    handles.append(handle("best for its cost", INK, "-", alpha=0.25, linewidth=5))
    log_axis(axes, "y", points.value.min(), points.value.max())
    log_axis(axes, "x", scale * points.gflops_per_sample.min(), scale * points.gflops_per_sample.max())
    axes.set_xlabel(f"{unit} a sample")
    axes.set_ylabel(label_of(metric))
    legend(figure, handles)
    return tips


def straightness(figure: "Figure", bends: pd.DataFrame, models: Sequence[str]) -> None:
    """How far velocities are from the chord over time, a line for each flow.

    One step is its own chord: it has no bend but for rounding, and there is nothing to see on a log axis.
    """
    axes = figure.add_subplot()
    flows = list(bends.model.unique())
    for model in flows:
        rows, colour = bends[bends.model == model], colour_of(models, model)
        edges = [*rows.t, float(rows.t.iloc[-1] + rows.width.iloc[-1])]
        axes.stairs(rows.value, edges, baseline=None, color=colour, linewidth=1.8)
        low, high = (rows.value - rows["std"]).clip(lower=rows.value / 10), rows.value + rows["std"]
        axes.stairs(high, edges, baseline=low, color=colour, alpha=0.25, fill=True, linewidth=0)
    some = bends.value[bends.value > 0]
    if len(some) and bends.t.nunique() > 1:
        log_axis(axes, "y", some.min(), some.max())
        axes.set_ylim(some.min() / 1.4, some.max() * 1.4)
    else:
        axes.set_ylim(-0.05, 1)
    axes.set_xlim(0, 1)
    axes.set_xlabel("time t, from noise to data")
    axes.set_ylabel("squared distance to the chord")
    legend(figure, [handle(model, colour_of(models, model)) for model in flows])


class Cost(NamedTuple):
    """The transport cost of a flow's own paths, with its error, and of the pairs it learnt (None for the base)."""

    model: str
    learnt: float | None
    own: float
    std: float


def transport(figure: "Figure", costs: Sequence[Cost], models: Sequence[str]) -> None:
    """Transport costs, a line for each flow."""
    axes = figure.add_subplot()
    for y, (model, learnt, own, std) in enumerate(costs):
        colour = colour_of(models, model)
        if learnt is not None:
            axes.plot([learnt, own], [y, y], color=colour, alpha=0.6, linewidth=1)
            axes.plot(learnt, y, "D", color=colour, markerfacecolor="none", markersize=8)
        axes.plot([own - std, own + std], [y, y], color=colour, alpha=0.4, linewidth=5, solid_capstyle="butt")
        axes.plot(own, y, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(costs)), [cost.model for cost in costs])
    axes.set_ylim(len(costs) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("transport cost |x1 - x0|², mean over dimensions")
    handles = [handle("the pairs it learnt", INK, "D", markerfacecolor="none"), handle("its own paths", INK, "o")]
    legend(figure, handles)


def histogram(figure: "Figure", bins: pd.DataFrame, label: str, models: Sequence[str]) -> None:
    """The density of a number over the couplings, an outline for each round."""
    axes = figure.add_subplot()
    rounds = list(bins["round"].unique())
    largest = bins.groupby("round").right.max()
    apart = (
        bins.left.min() >= 0 and largest.max() > 5 * largest.min()
    )  # on one linear axis a spike and a flat line
    for name in rounds:
        rows, colour = bins[bins["round"] == name], colour_of(models, name)
        edges = np.array([*rows.left, rows.right.iloc[-1]])
        if apart:
            edges[0] = max(edges[0], edges[1] / 3)
        density = rows["count"] / rows["count"].sum() / np.diff(np.log(edges) if apart else edges)
        axes.stairs(density, edges, color=colour, alpha=0.15, fill=True)
        axes.stairs(density, edges, color=colour, linewidth=1.8)
    if apart:
        log_axis(axes, "x", largest.min() / 30, largest.max())
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("density of pairs, over its logarithm" if apart else "density of pairs")
    legend(figure, [handle(f"couplings of {name}", colour_of(models, name)) for name in rounds])


def training(figure: "Figure", curves: pd.DataFrame, models: Sequence[str]) -> None:
    """Each model's own loss, as a mean over five records, at no more than `CURVE_POINTS` points."""
    axes = figure.add_subplot()
    for model, rows in curves.groupby("model", sort=False):
        smooth = rows.loss.rolling(5, min_periods=1).mean()
        every = -(-len(rows) // CURVE_POINTS)
        mark = ".-" if len(rows) < 5 else "-"
        axes.plot(
            rows.images[::every] / 1e6, smooth[::every], mark, color=colour_of(models, str(model)), linewidth=1.4
        )
    log_axis(axes, "y", curves.loss.min(), curves.loss.max())
    axes.set_xlabel("images seen (millions)")
    axes.set_ylabel("loss (each its own)")
    legend(figure, [handle(str(model), colour_of(models, str(model))) for model in curves.model.unique()])


def panels(bins: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The histograms there are: a name, the label of the axis, the bins."""
    labels = {
        "cost": "transport cost |x1 - x0|², mean over dimensions",
        "norm": "|x0|², mean over dimensions (noise: near 1)",
        "curvature": "straightness of the path from x0 to x1",
    }
    for what, rows in bins.groupby("what", sort=False):
        yield str(what), labels.get(str(what), str(what)), rows
