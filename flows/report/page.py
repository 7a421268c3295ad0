"""index.html: one page with all charts, tables and pictures in it."""

import io
from functools import partial
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from flows.report import figures, tables
from flows.report.figures import NARROW, WIDE, Chart, chart, label_of
from flows.report.pictures import Gallery
from flows.report.results import Results, choices_of


def charts_of(results: Results, curves: pd.DataFrame, points: pd.DataFrame) -> dict[str, Chart]:
    """Every chart by name; the first is drawn twice, for wide and for narrow pages."""
    models, metric = results.models, label_of(results.headline)
    quality = partial(figures.quality, curves=curves, models=models, floor=results.floor, ceiling=results.ceiling)
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


def page(
    results: Results,
    curves: pd.DataFrame,
    lines: list[str],
    charts: dict[str, Chart],
    pictures: Gallery,
    files: list[str],
) -> str:
    """The text of index.html."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    params = results.params
    yaml, text = YAML(), io.StringIO()
    yaml.dump(params.model_dump(mode="json"), text)
    memorised = results.of_models[results.of_models.metric == "memorisation"]
    rows = results.of_models[results.of_models.metric == results.headline]
    context: dict[str, Any] = {
        "params": params,
        "headline": results.headline,
        "label": label_of(results.headline),
        "first": rows.iloc[0].to_dict(),
        "several": int(rows.repeats.max()) > 1,
        "grids": " and ".join(dict.fromkeys(grid for grid in rows.grid if grid)),
        "accuracy": results.accuracy,
        "verdict": lines,
        "best": tables.best_table(choices_of(results)),
        "floor": results.floor,
        "ceiling": results.ceiling,
        "scores": tables.scores_table(curves),
        "others": tables.others_table(results, curves),
        "bent": results.bends.t.nunique() > 1,
        "flows": tables.flows_table(results),
        "pairs": tables.pairs_table(results),
        "memorised": {
            model: tables.plus_minus(value, std)
            for model, value, std in zip(memorised.model, memorised.value, memorised["std"], strict=True)
        },
        "charts": charts,
        "histograms": [one for key, one in charts.items() if key.startswith("couplings-")],
        "pictures": pictures,
        "features": results.features,
        "files": files,
        "yaml": text.getvalue(),
    }
    environment = Environment(
        loader=PackageLoader("flows.report", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(context)
