"""Stage `report`: all scores in tables, charts and pictures, and one page that shows them, alone and offline."""

import io
import shutil
from functools import partial
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from flows import figures, layout, tables
from flows.events import Events, Metrics, Note, Picture, Tag
from flows.events import Table as Rows
from flows.figures import NARROW, WIDE, Chart, chart, label_of
from flows.gallery import Gallery, gallery
from flows.params import Params
from flows.results import Results, choices_of, curves_of, headlines, pareto_of, read_results, verdict_of
from flows.work import publish, workspace
from fmcore.store import write_file, write_json
from fmcore.verdict import sentences


def report(params: Params, name: str) -> Events:
    """Joins every model's scores and draws them."""
    results = read_results(params)
    curves = curves_of(results)
    points = pareto_of(results, curves)
    with workspace("report", {}) as work:
        out = work / "out"
        if out.exists():  # of a report that was killed, maybe on other models
            shutil.rmtree(out)
        of_files = {
            "scores": results.scores,
            "curves": curves,
            "training": results.training,
            "bends": results.bends,
            "pareto": points,
        }
        for key, table in of_files.items():
            write_file(out / f"{key}.csv", table.to_csv(index=False, lineterminator="\n").encode())
        write_json(out / "metrics.json", headlines(results))
        charts = charts_of(results, curves, points)
        pictures = gallery(results)
        for drawn in charts.values():
            if drawn.name != "phone":
                write_file(out / f"{drawn.name}.png", drawn.png)
        for file, data in pictures.files.items():
            write_file(out / file, data)
        names = sorted(path.name for path in out.iterdir())
        found = verdict_of(results)
        # The Pareto figures for MLflow's charts, whose axis is the step: what models and their samples cost.
        for row in points.to_dict("records"):
            yield Metrics(int(row["training_passes"]), {f"by_training_passes.nfe_{row['nfe']:03d}": row["value"]})
            yield Metrics(round(1e6 * row["gflops_per_sample"]), {f"by_kflop.{row['model']}": row["value"]})
        lines = [] if found is None else sentences(found)
        write_file(out / "index.html", page(results, curves, lines, charts, pictures, names).encode())
        publish(out, layout.REPORTS)
        for file in names:
            if file.endswith(".png"):
                yield Picture(file.removesuffix(".png"), layout.REPORTS / file)
        shown = curves.drop(columns=["low", "high"])
        yield Rows("headline", [{str(k): v for k, v in row.items()} for row in shown.to_dict("records")])
        for line in lines:
            yield Note(f"report: {line}")
        if lines:
            yield Tag("verdict", lines[0])


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
    """index.html: one file that needs no other."""
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
        loader=PackageLoader("flows", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(context)
