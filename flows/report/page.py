"""index.html: one page with all charts, tables and pictures in it."""

import io
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from flows.report import figures, tables, words
from flows.report.data import Shown
from flows.report.figures import NARROW, WIDE, Chart, chart, label_of
from flows.report.pictures import Gallery
from flows.report.results import Results, choices_of


def charts_of(results: Results, curves: pd.DataFrame, points: pd.DataFrame) -> dict[str, Chart]:
    """Every chart by name; the first is drawn twice, for wide and for narrow pages."""
    models, metric = results.models, label_of(results.headline)
    quality = partial(
        figures.quality, curves=curves, models=models, floor=results.floor, pairs=results.pairs_scores
    )
    cost = partial(figures.transport, costs=tables.transport_costs(results), models=models)
    drawn = [
        chart("curves", f"{metric} against NFE", WIDE, quality),
        chart("phone", f"{metric} against NFE", (NARROW[0], 4.6), quality),
        *(
            chart(
                key,
                f"{metric} against {what}",
                NARROW,
                partial(paint, points=points, models=models, metric=results.headline),
            )
            for key, what, paint in (
                ("pareto", "network evaluations to make the model", figures.pareto),
                ("cost", "operations a sample", figures.sampling_cost),
            )
        ),
        chart(
            "straightness",
            "bend of the paths over time",
            NARROW,
            partial(figures.straightness, bends=results.bends, models=models),
        ),
        chart("transport", "transport cost of each flow and of what it learnt", NARROW, cost),
        *(
            chart(
                f"couplings-{what}",
                f"histogram: {label}",
                NARROW,
                partial(figures.histogram, bins=bins, label=label, models=models),
            )
            for what, label, bins in figures.panels(results.histograms)
        ),
        chart(
            "training",
            "training loss against images seen",
            NARROW,
            partial(figures.training, curves=results.training, models=models),
        ),
    ]
    return {one.name: one for one in drawn}


if TYPE_CHECKING:
    from jinja2 import Environment


class Drawn(NamedTuple):
    """All that is drawn for the page."""

    charts: dict[str, Chart]
    pictures: Gallery
    data: Shown


def page(
    results: Results,
    curves: pd.DataFrame,
    points: pd.DataFrame,
    lines: list[str],
    drawn: Drawn,
    files: list[str],
) -> str:
    """The text of index.html; equal results give equal texts."""
    params = results.params
    yaml, text = YAML(), io.StringIO()
    yaml.dump(params.model_dump(mode="json"), text)
    memorised = results.of_models[results.of_models.metric == "memorisation"]
    rows = results.of_models[results.of_models.metric == results.headline]
    others = tables.others_table(results, curves)
    context: dict[str, Any] = {
        "params": params,
        "headline": results.headline,
        "label": label_of(results.headline),
        "first": rows.iloc[0].to_dict(),
        "several": int(rows.repeats.max()) > 1,
        "grids": " and ".join(dict.fromkeys(grid for grid in rows.grid if grid)),
        "accuracy": results.accuracy,
        "verdict": lines,
        "next": words.next_steps(results),
        "answer": words.answer(results),
        "few": choices_of(results)[0].run,
        "cost": words.cost(results),
        "straight": words.straightness(results),
        "coupled": words.couplings(results.quality, {key: name for key, name, _ in tables.QUALITY}),
        "matched": [name for name in params.students if results.is_matched(name)],
        "stepped": any(params.distill_of(name).ending.name == "regression" for name in params.students),
        "data": drawn.data,
        "read": results.read,
        "digests": results.digests,
        "costs": tables.costs_table(points),
        "best": tables.pruned(tables.best_table(choices_of(results))),
        "floor": results.floor,
        "pairs_scores": results.pairs_scores,
        "scores": tables.scores_table(curves),
        "others": None if others is None else tables.pruned(others),
        "bent": results.bends.t.nunique() > 1,
        "flows": tables.pruned(tables.flows_table(results)),
        "pairs": tables.pruned(tables.pairs_table(results)),
        "memorised": {
            model: words.plus_minus(value, std)
            for model, value, std in zip(memorised.model, memorised.value, memorised["std"], strict=True)
        },
        "charts": drawn.charts,
        "histograms": [one for key, one in drawn.charts.items() if key.startswith("couplings-")],
        "pictures": drawn.pictures,
        "features": results.features,
        "files": files,
        "yaml": text.getvalue(),
    }
    return templates().get_template("page.html").render(context)


def templates() -> "Environment":
    """The templates of this folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=PackageLoader("flows.report", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
