"""Stage `report`: one table of all scores, the curves, the sample grids, and a page that shows them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flows import layout
from flows.events import Events, Picture, Table
from flows.params import Params
from flows.work import publish, workspace
from fmcore.store import read_json, read_tensors, write_file, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADLINE_OF_POINTS = "sliced_wasserstein"
COLOURS = ("#1f5fbf", "#d1495b", "#2e8b57", "#8f5bb5", "#c98a1b", "#4f9da6", "#7a5c3e")
# Marker and line of each solver, in the order of the table; a single point has no line anyway.
MARKS = ("o-", "s--", "^:", "D-.", "v--", "X:", "P-.", "*-")
LABELS = {
    "fid_inception": "FID",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "energy_distance": "energy distance",
}


OF_FLOWS = ("straightness", "transport_cost", "bits_per_dim", "nats")  # one number a model, none of a student


def report(params: Params, name: str) -> Events:
    """Joins every model's scores and draws them."""
    models = params.models
    table = pd.concat([pd.read_csv(layout.scores(model) / "scores.csv") for model in models], ignore_index=True)
    headline = headline_of(table)
    with workspace("report", {"models": models}, [layout.model(model) for model in models]) as work:
        out = work / "out"
        write_file(out / "scores.csv", table.to_csv(index=False, lineterminator="\n").encode())
        curves = table[table.metric == headline][["model", "solver", "nfe", "metric", "value", "std"]]
        write_file(out / "curves.csv", curves.to_csv(index=False, lineterminator="\n").encode())
        training = pd.concat([pd.read_csv(layout.curve(model)) for model in models], ignore_index=True)
        write_file(out / "training.csv", training.to_csv(index=False, lineterminator="\n").encode())
        write_json(out / "metrics.json", headlines(table, headline))
        pictures = {
            "curves": _curves(curves, models, out / "curves.png"),
            "samples": _samples(models, out / "samples.png"),
            "training": _training(training, out / "training.png"),
        }
        if params.is_points:
            pictures["trajectories"] = _trajectories(models, out / "trajectories.png")
        page = _page(params, table, headline, pictures)
        write_file(out / "index.html", page.encode())
        publish(out, layout.REPORTS)
        for key, path in pictures.items():
            yield Picture(key, layout.REPORTS / path.name)
        yield Table("headline", [{str(k): v for k, v in row.items()} for row in curves.to_dict("records")])


def headline_of(table: pd.DataFrame) -> str:
    """The distance the curves show."""
    names = table.metric.unique()
    return next((m for m in names if m.startswith(("fid_", "fd_"))), HEADLINE_OF_POINTS)


def headlines(table: pd.DataFrame, headline: str) -> dict[str, Any]:
    """What `dvc metrics show` prints: the headline by model and NFE for Euler, and each flow's straightness."""
    euler = table[(table.metric == headline) & (table.solver == "euler")]
    by_model = {
        str(model): {f"nfe_{nfe:03d}": value for nfe, value in zip(rows.nfe, rows.value, strict=True)}
        for model, rows in euler.groupby("model", sort=False)
    }
    out: dict[str, Any] = {headline: by_model}
    for metric in OF_FLOWS:
        rows = table[table.metric == metric]
        if len(rows):
            out[metric] = dict(zip(rows.model, rows.value, strict=True))
    return out


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def _nfe_axis(axes: "Axes", values: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(v) for v in values])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations a sample (NFE)")


def _curves(curves: pd.DataFrame, models: list[str], path: Path) -> Path:
    figure = _figure(7.5, 4.6)
    axes = figure.add_subplot()
    solvers = [str(solver) for solver in curves.solver.unique()]
    for i, model in enumerate(models):
        for solver, rows in curves[curves.model == model].groupby("solver", sort=False):
            rows = rows.sort_values("nfe")
            mark = MARKS[solvers.index(str(solver)) % len(MARKS)]
            axes.errorbar(
                rows.nfe,
                rows.value,
                yerr=rows["std"],
                fmt=mark,
                color=COLOURS[i % len(COLOURS)],
                markersize=9 if len(rows) == 1 else 5,
                markerfacecolor=COLOURS[i % len(COLOURS)] if solver == "euler" else "none",
                capsize=2,
                label=f"{model}, {solver}",
            )
    _nfe_axis(axes, sorted(curves.nfe.unique().tolist()))
    axes.set_yscale("log")
    metric = str(curves.metric.iloc[0])
    axes.set_ylabel(LABELS.get(metric, f"Frechet distance ({metric})"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return _save(figure, path)


def _samples(models: list[str], path: Path) -> Path:
    """Models down, NFE across, the same noise in every cell."""
    shown = {model: read_tensors(layout.scores(model) / "samples.safetensors") for model in models}
    columns = sorted({int(key[6:]) for cells in shown.values() for key in cells if key.startswith("euler.")})
    figure = _figure(1.6 * len(columns) + 0.6, 1.6 * len(models) + 0.3)
    grid = figure.subplots(len(models), len(columns), squeeze=False)
    for row, model in enumerate(models):
        for column, nfe in enumerate(columns):
            axes = grid[row][column]
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"{nfe} NFE", fontsize=9)
            if column == 0:
                axes.set_ylabel(model, fontsize=9)
            samples = shown[model].get(f"euler.{nfe:04d}")
            if samples is None:
                axes.axis("off" if column else "on")
                for side in axes.spines.values():
                    side.set_visible(False)
            elif samples.ndim == 4:
                _tile(axes, samples)
            else:
                axes.scatter(samples[:, 0], samples[:, 1], s=0.6, linewidths=0, color=COLOURS[0])
                axes.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    return _save(figure, path)


def _tile(axes: "Axes", samples: Any) -> None:
    from fmcore.pictures import tile

    sheet = tile(samples, 4).numpy()
    axes.imshow(sheet if sheet.shape[2] == 3 else sheet[:, :, 0], cmap="gray", vmin=0, vmax=255)


def _training(training: pd.DataFrame, path: Path) -> Path:
    figure = _figure(7.5, 3.4)
    axes = figure.add_subplot()
    for i, (model, curve) in enumerate(training.groupby("model", sort=False)):
        smooth = curve.loss.rolling(5, min_periods=1).mean()
        mark = "." if len(curve) < 5 else ""
        axes.plot(curve.images, smooth, mark + "-", color=COLOURS[i % len(COLOURS)], label=str(model))
    axes.set_yscale("log")
    axes.set_xlabel("images seen")
    axes.set_ylabel("training loss (each its own)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, path)


def _trajectories(models: list[str], path: Path) -> Path:
    """Paths of points from noise to data, a panel for each flow."""
    traced = {}
    for model in models:
        cells = read_tensors(layout.scores(model) / "samples.safetensors")
        if "paths" in cells:
            traced[model] = cells["paths"]
    figure = _figure(3.4 * len(traced), 4.2)
    for axes, (model, paths) in zip(
        figure.subplots(1, len(traced), squeeze=False)[0], traced.items(), strict=True
    ):
        axes.plot(paths[:, :, 0], paths[:, :, 1], color="#7f8fa6", linewidth=0.5, alpha=0.7)
        axes.scatter(paths[0, :, 0], paths[0, :, 1], s=4, color="#333333", label="noise")
        axes.scatter(paths[-1, :, 0], paths[-1, :, 1], s=4, color=COLOURS[0], label="sample")
        axes.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal", title=model)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return _save(figure, path)


def _page(params: Params, table: pd.DataFrame, headline: str, pictures: dict[str, Path]) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape

    rows = table[table.metric == headline].copy()
    rows["score"] = [f"{v:.3g} ± {s:.1g}" for v, s in zip(rows.value, rows["std"], strict=True)]
    wide = rows.pivot(index=["model", "solver"], columns="nfe", values="score").reindex(
        params.models, level="model"
    )
    flows = table[table.metric.isin(OF_FLOWS)]
    first = rows.iloc[0]
    environment = Environment(loader=PackageLoader("flows", "."), autoescape=select_autoescape())
    return environment.get_template("report.html").render(
        data=params.data.name,
        headline=headline,
        label=LABELS.get(headline, f"Frechet distance on the features of {headline.removeprefix('fd_')}"),
        nfes=list(wide.columns),
        rows=[
            (model, solver, ["" if pd.isna(v) else v for v in line])
            for (model, solver), line in zip(wide.index, wide.to_numpy(), strict=True)
        ],
        flows=flows.to_dict("records"),
        first=first.to_dict(),
        accuracy=read_json(layout.FEATURES / "accuracy.json").get("held_out_accuracy"),
        pictures={key: path.name for key, path in pictures.items()},
        params=json.dumps(params.model_dump(mode="json"), indent=2),
    )
