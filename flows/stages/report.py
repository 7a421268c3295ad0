"""Stage `report`: all scores in tables, charts and pictures, and one page that shows them, alone and offline."""

import shutil

from flows import layout
from flows.events import Events, Metrics, Note, Picture, Tag
from flows.events import Table as Rows
from flows.params.schema import Params
from flows.report.page import charts_of, page
from flows.report.pictures import gallery
from flows.report.results import curves_of, headlines, pareto_of, read_results, verdict_of
from flows.workshop.entry import Stage
from flows.workshop.workspace import publish, workspace
from fmcore.disk.files import write_file, write_json
from fmcore.verdict import sentences


def report(params: Params, stage: Stage) -> Events:
    """Joins every model's scores and draws them."""
    results = read_results(params)
    curves = curves_of(results)
    points = pareto_of(results, curves)
    with workspace(stage, params) as work:
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
