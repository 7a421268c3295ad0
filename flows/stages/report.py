"""Stage `report`: all scores in tables, charts and pictures, and one page that shows them, alone and offline."""

from pathlib import Path

import pandas as pd

from flows import layout
from flows.events import Events, Metrics, ModelReady, Note, Picture, Rated, Tag, samples_at, scored, trained
from flows.events import Table as Rows
from flows.params.schema import Params
from flows.report.data import shown as shown_of
from flows.report.page import Drawn, charts_of, page
from flows.report.pictures import gallery
from flows.report.results import (
    PARETO_NFE,
    Results,
    choices_of,
    curves_of,
    headlines,
    pareto_of,
    ratings_of,
    read_results,
    training_passes,
    verdict_of,
    yardstick_of,
)
from flows.workshop.entry import Stage
from flows.workshop.workspace import publish, workspace
from fmcore.disk.files import read_json, write_file, write_json
from fmcore.pictures import quick_picture
from fmcore.verdict import sentences


def report(params: Params, stage: Stage) -> Events:
    """Joins every model's scores and draws them."""
    results = read_results(params)
    curves = curves_of(results)
    points = pareto_of(results, curves)
    with workspace(stage, params) as work:
        out = work / "out"
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
        data = shown_of(results.data, results.read)
        drawn = Drawn(charts_of(results, curves, points), gallery(results), data)
        for chart in drawn.charts.values():
            if chart.name != "phone":
                write_file(out / f"{chart.name}.png", chart.png)
        for file, picture in (drawn.pictures.files | data.files).items():
            write_file(out / file, picture)
        names = sorted(path.name for path in out.iterdir())
        found = verdict_of(results)
        yield from _of_models(results, work)
        yield from _of_all(results, points)
        yield from _rated(results, work)
        lines = [] if found is None else sentences(found)
        write_file(out / "index.html", page(results, curves, points, lines, drawn, names).encode())
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
        yield Note(f"report: the page is {layout.REPORTS}/index.html")


def _of_models(results: Results, work: Path) -> Events:
    """What is known of each model, of those too that nothing was run for because nothing had changed."""
    passes = training_passes(results.params)
    for model in results.models:
        rows = results.of_models[results.of_models.model == model]
        first = rows.grid[rows.solver == "euler"].iloc[0]
        for row in rows.to_dict("records"):
            how = {"nfe": row["nfe"], "solver": row["solver"], "grid": "" if row["grid"] == first else row["grid"]}
            yield scored(row["metric"], row["value"], of=model, **how)
        for record in results.training[results.training.model == model].to_dict("records"):
            yield trained(int(record["images"]), record["loss"], record["grad_norm"], record["lr"], of=model)
        gflops = results.flops[model] / 1e9
        costs = {"cost/training_passes": float(passes[model]), "cost/gflops_per_evaluation": gflops}
        yield Metrics(0, costs, of=model)
        for key, samples in results.shown[model].items():
            if key.startswith("euler."):
                path = work / "samples.png"
                write_file(path, quick_picture(samples))
                yield samples_at(int(key.removeprefix("euler.")), path, of=model)


def _rated(results: Results, work: Path) -> Events:
    """The models whose scores these are, as far as they are at hand, and what they are chosen by."""
    for model, scores in ratings_of(results).items():
        folder, digest = layout.model(model), results.digests[model]
        manifest = folder / "manifest.json"
        if digest and manifest.exists() and read_json(manifest).get("sha256") == digest:
            yield ModelReady(model, folder)
        shown = results.shown[model]
        picture, finest = work / "samples.png", max(key for key in shown if key.startswith("euler."))
        write_file(picture, quick_picture(shown[finest]))
        if digest:
            yield Rated(model, digest, yardstick_of(results), scores, picture)


def _of_all(results: Results, points: pd.DataFrame) -> Events:
    """What the pipeline is compared with others by, and the Pareto figures: their axis is the step of a chart."""
    for row in points.to_dict("records"):
        by_cost = {f"pareto/by_training_passes.nfe_{row['nfe']:03d}": row["value"]}
        yield Metrics(int(row["training_passes"]), by_cost)
        yield Metrics(round(1e6 * row["gflops_per_sample"]), {f"pareto/by_kflop.{row['model']}": row["value"]})
        if row["nfe"] in PARETO_NFE:
            yield Metrics(0, {f"at {row['nfe']}/{row['model']}": row["value"]})
    for choice in choices_of(results):
        if choice.budget in PARETO_NFE:
            yield Metrics(0, {f"at {choice.budget}/best of all": choice.run.score.value})
            yield Tag(f"best-at-{choice.budget}", choice.run.name)
