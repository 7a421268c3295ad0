"""The report says what the tables say, needs no other file, and is drawn as it should be.

On a desk and on a phone, in light and in dark: what a browser draws is looked at pixel by pixel, if there is one.
"""

import base64
import csv
import doctest
import html
import io
import json
import math
import re
import shutil
import subprocess
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from flows import layout
from flows.events import Metrics, Picture, Table, Tag
from flows.params import preset
from flows.params.reading import validate
from flows.report import figures, tables
from flows.report import pictures as gallery
from flows.report.results import training_passes
from flows.stages.report import report
from flows.workshop.entry import Stage
from flows.workshop.workspace import workspace
from fmcore.disk.dataset import save_dataset
from fmcore.disk.files import read_tensors, write_json, write_tensors
from fmcore.flow.pixels import quantise
from fmcore.pictures import animation
from repository import ROOT

DIGEST = "6bed593a7b9adda0e95919f9c03f6890825f61c0269d58d1e505e6e720c3ef41"
COLUMNS = (
    *("model", "round", "solver", "grid", "nfe", "metric", "value", "std", "spread", "repeats", "n_samples"),
    *("n_reference", "extractor", "extractor_sha256", "seed"),
)
AT_ONE = {"base": 73.4, "r1": 1.22, "r2": 1.21, "student": 0.89}
AT_BEST = {"base": 0.37, "r1": 0.64, "r2": 0.81, "student": 0.89}
STRAIGHTNESS = {"base": 0.132, "r1": 0.0055, "r2": 0.0033}


def params_of(name, **evaluate):
    raw = json.loads(json.dumps(preset.overlaid(name)))
    raw["evaluate"] |= evaluate
    return validate(raw, name)


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_scores(folder, rows, headline):
    """Scores, and groups left out that move together from model to model, as on common noise."""
    rows = list(rows)
    write_csv(folder / "scores.csv", COLUMNS, rows)
    z = torch.randn(10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = ((z - z.mean()) / (z - z.mean()).norm()).tolist()
    lines = []
    for row in (row for row in rows if row[5] == headline):
        lines += [(*row[2:6], group, row[6] + row[7] / 0.9**0.5 * z[group]) for group in range(10)]
    write_csv(folder / "jackknife.csv", ("solver", "grid", "nfe", "metric", "group", "value"), lines)


def build(params):
    """Writes into the working directory what the stages before the report would have left there."""
    points, section = params.is_points, params.evaluate
    headline = "sliced_wasserstein" if points else "fd_cnn64"
    name, digest, reference = ("", "", 10_000) if points else ("cnn64", DIGEST, 1797)
    g = torch.Generator().manual_seed(0)
    data = params.data.load()
    save_dataset(layout.DATASET, data, {})
    finest = max(section.solvers["euler"])
    others = (
        {"kid": (0.012, 0.0004), "precision": (0.81, 0.011), "recall": (0.77, 0.012)} if section.metrics else {}
    )
    if points:
        others = {"energy_distance": (0.004, 0.0006)}
    repeats, error = section.repeats, 0.1 if points else 0.03
    about = (repeats, section.samples, reference, name, digest, params.seed)
    single = (1, section.samples, 0, "", "", params.seed)

    def rows_at(model, rounds, solver, grid, nfe, value):
        spread = round(0.02 * value, 6) if repeats > 1 else ""
        yield (
            model,
            rounds,
            solver,
            grid,
            nfe,
            headline,
            round(value, 6),
            round(error * value, 6),
            spread,
            *about,
        )
        for metric, (mean, std) in others.items():
            yield (model, rounds, solver, grid, nfe, metric, round(mean * (1 + 1 / nfe), 6), std, spread, *about)

    for i, model in enumerate(params.models):
        folder, student = layout.scores(model), model == "student"
        rounds = min(i, 2) if not student else 1
        rows, tensors = [], {}
        solvers = {"euler": (1,)} if student else dict(section.solvers)
        for grid, (solver, nfes) in product(section.grids, solvers.items()):
            for nfe in nfes:
                if grid is not section.grids[0] and nfe == 1:
                    continue
                better = (0.8 if solver != "euler" else 1.0) * (1.0 if grid is section.grids[0] else 0.9)
                first, last = AT_ONE[model], AT_BEST[model]
                value = (last + (first - last) / nfe**1.8) * (1.0 if nfe == 1 else better)
                rows += rows_at(model, rounds, solver, grid.name, nfe, value)
                if solver == "euler" and grid is section.grids[0]:
                    tensors[f"euler.{nfe:04d}"] = samples_of(data, 1.2 / nfe if i == 0 else 0.05 * i, g)
        if section.dopri5 and not student:
            rows += rows_at(model, rounds, "dopri5", "", 74, AT_BEST[model] * 0.97)
        grid = section.grids[0].name
        of_flow = (
            {}
            if student
            else {
                "straightness": (STRAIGHTNESS[model], 0.01 * STRAIGHTNESS[model]) if finest > 1 else (0.0, 0.0),
                "transport_cost": (1.1935 - 0.004 * i, 0.002),
                "reconstruction_real": (0.09 / (1 + 6 * i), 0.001),
                "reconstruction_generated": (0.08 / (1 + 9 * i), 0.001),
            }
        )
        if not points:
            of_flow["memorisation"] = (0.97 - 0.05 * i, 0.012)
        nfe = 1 if student else finest
        rows += [(model, rounds, "euler", grid, nfe, key, *found, "", *single) for key, found in of_flow.items()]
        write_scores(folder, rows, headline)
        write_json(folder / "about.json", {"flops": 2_300_000})
        if not points:
            rows_of = torch.randperm(len(data.x1), generator=g)[:16]
            tensors["nearest"] = quantise(data.x1[rows_of])
            tensors["nearest_distance"] = 2 + torch.rand(16, generator=g)
            tensors["strips"] = quantise(data.x1[:32]).view(4, 8, *data.shape)
        if not student:
            start = torch.randn((2000 if points else 16, *data.shape), generator=g)
            end = samples_of(data, 0.1, g)
            end = end if points else end / 127.5 - 1
            times = torch.linspace(0, 1, min(17, finest + 1))
            bent = times + (0.3 / (1 + 9 * i)) * (times * math.pi).sin()
            frames = torch.stack([(1 - a) * start + a * end for a in bent])
            tensors["frames"] = frames if points else quantise(frames)
            tensors["frame_times"] = times
            if points:
                tensors["paths"] = frames[:, :200].contiguous()
            t = [j / finest for j in range(finest)]
            lines = [(a, 1 / finest, STRAIGHTNESS[model] * (0.3 + 4 * (a - 0.5) ** 2), 1e-4) for a in t]
            if finest == 1:  # one step is its own chord
                lines = [(0.0, 1.0, 0.0, 0.0)]
            write_csv(folder / "bends.csv", ("t", "width", "value", "std"), lines)
        write_tensors(folder / "samples.safetensors", tensors)
        images = torch.arange(1, 71) * 12_800
        losses = (0.5 if i == 0 else 0.02 / i) * (
            1 + 3 * torch.exp(-torch.arange(70) / 9) + 0.1 * torch.rand(70, generator=g)
        )
        lines = [
            (model, 50 * (j + 1), int(n), float(v), 0.1, 1e-3)
            for j, (n, v) in enumerate(zip(images, losses, strict=True))
        ]
        write_csv(layout.curve(model), ("model", "step", "images", "loss", "grad_norm", "lr"), lines)
    for i, name_ in enumerate(params.reflow.rounds):
        folder, made = layout.SCORES / f"couplings-{name_}", params.couple_of(name_)
        rows = rows_at(f"couplings-{name_}", i + 1, made.solver, made.grid.name, made.nfe, 0.42 + 0.2 * i)
        write_scores(folder, rows, headline)
        quality = {"not_finite": 0.0, "x0_mean": 0.0003, "x0_mean_sigmas": 0.5, "x0_square": 1.0002}
        quality |= {"x0_square_sigmas": 0.3, "x0_fourth": 3.02, "x0_fourth_sigmas": 7.4 if i else 1.1}
        quality |= {"x0_neighbours": -0.0004, "x0_neighbours_sigmas": -0.8, "outliers": 0.0002, "again": 1.2e-6}
        quality |= {"cost": 1.1921 - 0.004 * i, "cost_05": 0.71, "cost_50": 1.17, "cost_95": 1.78, "cost_max": 3.1}
        quality |= {"curvature": 0.11 / (1 + 20 * i), "curvature_50": 0.1 / (1 + 20 * i), "curvature_95": 0.3}
        write_json(folder / "quality.json", quality)
        lines = []
        for what, centre, width in (
            ("cost", 1.19, 0.32),
            ("norm", 1.0, 0.18),
            ("curvature", 0.11 / (1 + 20 * i), 0.03 / (1 + 20 * i)),
        ):
            edges = torch.linspace(centre - 3 * width, centre + 3 * width, 41)
            counts = (5000 * torch.exp(-(((edges - centre) / width + 0.3 * i) ** 2) / 2)).long()
            ends = zip(edges, edges[1:], counts[1:], strict=False)
            lines += [(what, round(float(a), 6), round(float(b), 6), int(n)) for a, b, n in ends]
        write_csv(folder / "histograms.csv", ("what", "left", "right", "count"), lines)
    manifest = {"extractor": "none" if points else "classifier", "reference_sha256": "b41c" * 16}
    if not points:
        manifest |= {"sha256": DIGEST, "image_shape": [1, 8, 8], "data": "digits", "split": "train"}
        manifest["preprocessing"] = "8-bit, round half up, no resizing"
    write_json(layout.FEATURES / "manifest.json", manifest)
    write_json(layout.FEATURES / "accuracy.json", {} if points else {"held_out_accuracy": 0.986072})
    write_json(layout.FEATURES / "floor.json", {} if points else {"coefficient": 63.0, "std": 2.1})


def samples_of(data, noise, g):
    count = 2000 if len(data.shape) == 1 else 16
    x = data.x1[torch.randperm(len(data.x1), generator=g)[:count]]
    x = x + noise * torch.randn(x.shape, generator=g)
    return x if len(data.shape) == 1 else quantise(x.clamp(-1, 1))


class Made(NamedTuple):
    params: object
    folder: Path
    events: list

    @property
    def reports(self):
        return self.folder / "reports"

    @property
    def page(self):
        return (self.reports / "index.html").read_text()


def make(folder, params):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        build(params)
        return Made(params, folder, list(report(params, Stage("report", ""))))


@pytest.fixture(scope="module", params=["images", "points"])
def made(request, tmp_path_factory):
    params = (
        params_of("digits", metrics=["kid", "precision_recall"])
        if request.param == "images"
        else params_of("smoke")
    )
    return make(tmp_path_factory.mktemp(request.param), params)


def rows_of_page(page):
    """Every table of the page with an id, as texts."""
    found = {}
    for name, body in re.findall(r'<table id="table-([a-z]+)">(.*?)</table>', page, re.DOTALL):
        rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found[name] = [[html.unescape(cell) for cell in row] for row in cells]
    return found


def close(text, value, std=None):
    """Whether a cell says this number, to the digits it shows."""
    parts = text.replace("±", " ").split()
    digits = len(parts[0].partition(".")[2])
    assert float(parts[0]) == pytest.approx(value, abs=0.51 * 10**-digits), text
    if std is not None:
        assert float(parts[1]) == pytest.approx(std, rel=0.06), text


def test_every_number_of_the_tables_is_in_scores(made):
    scores = pd.read_csv(made.reports / "scores.csv", keep_default_na=False, dtype={"grid": str})
    tables_ = rows_of_page(made.page)
    assert set(tables_) == {"best", "scores", "metrics", "flows", "pairs"}
    headline = "sliced_wasserstein" if made.params.is_points else "fd_cnn64"
    found = scores[scores.metric == headline]
    head, *rows = tables_["scores"]
    nfes = [int(name.split()[0]) for name in head[2:]]
    count = 0
    for model, solver, *cells in rows:
        for nfe, cell in zip(nfes, cells, strict=True):
            run = found[(found.model == model) & (found.solver == solver) & (found.nfe == nfe)]
            assert len(run) == bool(cell)
            if cell:
                close(cell, run.value.iloc[0], run["std"].iloc[0])
                count += 1
    assert count == found.model.isin(made.params.models).sum()
    head, *rows = tables_["metrics"]
    metrics = [name.replace(" ", "_") for name in head[3:]]
    assert metrics == (["energy_distance"] if made.params.is_points else ["kid", "precision", "recall"])
    for (model, solver, nfe, *cells), metric in product(rows, metrics):
        run = scores[(scores.model == model) & (scores.solver == solver) & (scores.nfe == int(nfe))]
        value = run[run.metric == metric]
        close(cells[metrics.index(metric)], value.value.iloc[0], value["std"].iloc[0])
    head, *rows = tables_["flows"]
    assert [row[0] for row in rows] == made.params.models
    for model, learnt, *cells in rows:
        assert (learnt == "") == (model == "base")
        for name, cell in zip(head[2:], cells, strict=True):
            key = next(key for key, text in tables.MEASURES.items() if text == name)
            run = scores[(scores.model == model) & (scores.metric == key)]
            assert len(run) == bool(cell)
            if cell:
                close(cell, run.value.iloc[0], run["std"].iloc[0])


def test_pairs_say_what_was_found_and_what_was_expected(made):
    head, *rows = rows_of_page(made.page)["pairs"]
    assert head == ["couplings", "r1", "r2", "expected"]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["mean of x0"] == ["0.0003 (+0.5 σ)", "0.0003 (+0.5 σ)", "0"]
    assert by_name["mean fourth power of x0"] == ["3.02 (+1.1 σ)", "3.02 (+7.4 σ)", "3"]
    assert made.page.count('class="bad"') == 1  # the one that is no noise
    assert by_name["transport cost, mean"][:2] == ["1.192", "1.188"]
    assert by_name["straightness of the pairs' paths, mean"][0] == "0.11"
    assert "urvature" not in re.sub(r'couplings-curvature|data:image[^"]*|<pre>.*?</pre>', "", made.page)
    assert "rarest class, 1 is its fair share" not in by_name  # nothing was conditional


def test_best_is_the_lowest_within_each_budget(made):
    curves = pd.read_csv(made.reports / "curves.csv")
    head, *rows = rows_of_page(made.page)["best"]
    assert head == ["NFE at most", "take", "how", "at NFE", "distance", "as good"]
    assert [int(row[0]) for row in rows] == sorted(curves.nfe.unique())
    assert {row[2] for row in rows} == {"euler", "heun"}
    for budget, model, how, nfe, distance, as_good in rows:
        within = curves[curves.nfe <= int(budget)]
        best = within.loc[within.value.idxmin()]
        assert (model, how, int(nfe)) == (best.model, best.solver, best.nfe)
        close(distance, best.value, best["std"])
        # On common noise errors of the builder's differences are differences of errors.
        near = within[within.value - best.value <= 2 * abs(within["std"] - best["std"])]
        assert as_good == ", ".join(name for name in near.model.unique() if name != model)
    said = re.findall(r"<li>(.*?)</li>", made.page)
    start = (
        "Whether another reflow round after r2 pays cannot " if made.params.is_points else "Another reflow round "
    )
    assert said[0].startswith(start)
    assert [line.split(",")[0] for line in said[1:]] == ["r1", "r2"]


def test_csv_files(made):
    curves = pd.read_csv(made.reports / "curves.csv")
    assert list(curves.columns) == ["model", "solver", "grid", "nfe", "metric", "value", "std", "low", "high"]
    assert list(curves.model.unique()) == made.params.models
    assert ((curves.low < curves.value) & (curves.value < curves.high) & (curves.low > 0)).all()
    pareto = pd.read_csv(made.reports / "pareto.csv")
    assert list(pareto.columns) == ["model", "nfe", "training_passes", "gflops_per_sample", "value", "std"]
    assert not pareto.duplicated(["model", "nfe"]).any()
    for row in pareto.itertuples():
        runs = curves[(curves.model == row.model) & (curves.nfe == row.nfe)]
        assert row.value == runs.value.min()
        assert row.gflops_per_sample == pytest.approx(row.nfe * 2.3e-3)
        assert row.training_passes == training_passes(made.params)[row.model]
    bends = pd.read_csv(made.reports / "bends.csv")
    assert list(bends.columns) == ["model", "t", "width", "value", "std"]
    assert list(bends.model.unique()) == made.params.models[:-1]
    assert (bends.groupby("model").width.sum() - 1).abs().max() < 1e-9
    assert list(pd.read_csv(made.reports / "training.csv").model.unique()) == made.params.models
    scores = pd.read_csv(made.reports / "scores.csv")
    assert list(scores.columns) == list(COLUMNS)
    assert list(scores.model.unique()) == [*made.params.models, "couplings-r1", "couplings-r2"]


def test_mlflow_gets_the_pareto_figures(made):
    """Its charts have the step for an axis, so what a model or a sample costs is the step."""
    pareto = pd.read_csv(made.reports / "pareto.csv")
    logged = [event for event in made.events if isinstance(event, Metrics)]
    by_model = {(e.step, *e.values.items()) for e in logged if next(iter(e.values)).startswith("by_training")}
    expected = {
        (row.training_passes, (f"by_training_passes.nfe_{row.nfe:03d}", row.value)) for row in pareto.itertuples()
    }
    assert by_model == expected
    by_sample = [e.step for e in logged if next(iter(e.values)).startswith("by_kflop.")]
    assert by_sample == pytest.approx((1e6 * pareto.gflops_per_sample).tolist(), abs=0.51)


def test_metrics(made):
    metrics = json.loads((made.reports / "metrics.json").read_text())
    headline = "sliced_wasserstein" if made.params.is_points else "fd_cnn64"
    assert set(metrics[headline]) == set(made.params.models)
    assert metrics[headline]["student"] == {"nfe_001": 0.89}
    assert metrics["straightness"] == STRAIGHTNESS
    assert metrics["ceiling"] == 0.42
    assert set(metrics) <= {headline, "straightness", "ceiling", "floor"}
    assert all(len(by_nfe) <= 2 for by_nfe in metrics[headline].values())
    if made.params.is_points:
        # 2,000 fresh points: not 0, and far below a model that is off by a tenth of the board's width.
        assert 0.01 < metrics["floor"] < 0.2
    else:
        assert metrics["floor"] == pytest.approx(63 * (1 / 10_000 + 1 / 1797), rel=1e-5)


def passes(section, **base):
    raw = json.loads(json.dumps(preset.overlaid("digits")))
    raw["distill"] |= section
    raw["base"] |= base
    raw["couple"]["inverted"] = raw["couple"]["pairs"] if base else 0
    return training_passes(validate(raw, "digits"))


def test_training_passes_count_what_was_spent_once():
    # 900,000 images; twice 100,000 pairs of 16 evaluations and 600,000 images; 600,000.
    assert passes({}) == {"base": 900_000, "r1": 3_100_000, "r2": 5_300_000, "student": 3_700_000}
    # Of r2, from the base: r1 made its pairs, so its training counts, and the base once.
    assert passes({"init": "base", "couplings": "r2"})["student"] == 3_100_000 + 1_600_000 + 600_000
    assert passes({"init": "r2", "couplings": "r1"})["student"] == 5_900_000
    taken = passes({}, teacher="a/diffusion/model")
    assert taken == {"base": 0, "r1": 3_800_000, "r2": 7_600_000, "student": 4_400_000}


def test_the_page_needs_no_other_file(made):
    page = made.page
    assert "://" not in page
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|javascript:| on\w+=", page)
    for source in re.findall(r'(?:src|srcset)="([^"]*)"', page):
        assert re.match(r"data:image/(png|gif);base64,[A-Za-z0-9+/=]+$", source), source[:60]
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]*)', page)
    assert used
    assert set(used) <= set(ids)
    assert len(page) < 3_000_000
    # What is drawn takes the page's colours; the sentinels are gone.
    charts = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert figures.INK not in charts
    assert figures.PAPER not in charts
    assert "currentColor" in charts


def test_pictures_are_files_too(made):
    shown = [event for event in made.events if isinstance(event, Picture)]
    names = {event.name for event in shown}
    both = {"curves", "samples", "training", "pareto", "cost", "straightness", "transport", "couplings-cost"}
    assert both <= names
    assert ({"trajectories"} if made.params.is_points else {"nearest", "strips"}) <= names
    for event in shown:
        with Image.open(made.folder / event.path) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(2**24)) > 2
    (table,) = (event for event in made.events if isinstance(event, Table))
    assert len(table.rows) == len(pd.read_csv(made.reports / "curves.csv"))


def test_the_animation_goes_from_noise_to_data_and_stops_there(made):
    assert (made.reports / "flows.gif").stat().st_size < 600_000
    with Image.open(made.reports / "flows.gif") as image:
        assert (image.n_frames, image.info["loop"]) == (17, 0)
        lasting = []
        for i in range(17):
            image.seek(i)
            lasting.append(image.info["duration"])
        assert lasting[1:-1] == [80] * 15
        assert min(lasting[0], lasting[-1]) >= 500
        last = np.asarray(image.convert("RGBA"))
    still = re.search(r'prefers-reduced-motion: reduce\)" srcset="data:image/png;base64,([^"]*)"', made.page)[1]
    with Image.open(io.BytesIO(base64.b64decode(still))) as image:
        alone = np.asarray(image.convert("RGBA")).astype(int)
    there = alone[:, :, 3] > 127
    assert (there == (last[:, :, 3] > 127)).all()
    assert abs(alone[there] - last[there].astype(int)).max() <= 4  # colours of a palette


def test_the_same_inputs_give_the_same_bytes(made, tmp_path):
    again = make(tmp_path, made.params)
    files = sorted(path.name for path in made.reports.iterdir())
    assert files == sorted(path.name for path in again.reports.iterdir())
    assert not [
        name for name in files if (made.reports / name).read_bytes() != (again.reports / name).read_bytes()
    ]


def test_what_a_killed_report_left_is_not_published(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)

    def killed():
        with workspace(Stage("report", ""), params) as work:
            (work / "out").mkdir()
            (work / "out/trajectories.png").write_text("of other models")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    list(report(params, Stage("report", "")))
    assert not (tmp_path / "reports/trajectories.png").exists()


def test_grids_repeats_and_an_adaptive_solver(tmp_path):
    grids = [{"name": "uniform"}, {"name": "cosine"}]
    params = params_of("digits", repeats=3, grids=grids, dopri5={"rtol": 1e-3, "atol": 1e-3})
    made = make(tmp_path, params)
    runs = [row[1] for row in rows_of_page(made.page)["scores"][1:] if row[0] == "r1"]
    assert runs == [
        "euler, uniform",
        "heun, uniform",
        "ab2, uniform",
        "euler, cosine",
        "heun, cosine",
        "ab2, cosine",
        "dopri5",
    ]
    assert "3 times over" in made.page
    assert "uniform and cosine grids" in made.page
    assert "metrics" not in rows_of_page(made.page)
    assert json.loads((made.reports / "metrics.json").read_text())["fd_cnn64"]["r1"]["nfe_001"] == 1.22
    best = {row[0]: row[1:] for row in rows_of_page(made.page)["best"][1:]}
    assert best["1"] == ["student", "euler, uniform", "1", "0.890 ± 0.027", ""]
    assert best["16"][:3] == ["r1", "heun, cosine", "16"]
    assert best["74"][:3] == ["base", "dopri5", "74"]


def test_models_as_good_are_told_by_paired_errors(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    # r2 at one step a hair below the student: by errors of their own no difference, on common noise a sure one.
    file = layout.scores("r2") / "scores.csv"
    table = pd.read_csv(file, keep_default_na=False)
    row = (table.solver == "euler") & (table.nfe == 1) & (table.metric == "fd_cnn64")
    table.loc[row, ["value", "std"]] = 0.88, 0.0267
    table.to_csv(file, index=False)
    as_good = {}
    for paired in (True, False):
        file = layout.scores("r2") / "jackknife.csv"
        table = pd.read_csv(file)
        row = (table.solver == "euler") & (table.nfe == 1)
        moved = pd.read_csv(layout.scores("student") / "jackknife.csv").value - 0.01
        table.loc[row, "value"] = moved.to_numpy()
        (table if paired else table[~row]).to_csv(file, index=False)
        list(report(params, Stage("report", "")))
        rows = rows_of_page((tmp_path / "reports/index.html").read_text())["best"]
        assert rows[1][:2] == ["1", "r2"]
        as_good[paired] = rows[1][-1]
    assert as_good == {True: "", False: "student"}


def test_no_floor_where_it_is_not_known(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    write_json(layout.FEATURES / "floor.json", {})
    list(report(params, Stage("report", "")))
    assert "floor" not in (tmp_path / "reports/index.html").read_text()
    assert "floor" not in json.loads((tmp_path / "reports/metrics.json").read_text())


@pytest.mark.parametrize("name", ["digits", "smoke"])
def test_one_nfe(tmp_path, name):
    made = make(tmp_path, params_of(name, solvers={"euler": [1]}))
    assert 'id="verdict"' not in made.page
    found = rows_of_page(made.page)
    assert found["scores"][0] == ["model", "solver", "1 NFE"]
    assert [row[:4] for row in found["best"][1:]] == [["1", "student", "euler", "1"]]
    # One step has no bends: the chart is there, since DVC lists it, and the page says why it shows none.
    assert (made.reports / "straightness.png").exists()
    assert "and so is any single step" in made.page
    assert [event for event in made.events if isinstance(event, Tag)] == []


def test_bends_that_are_all_zero_or_lie_on_one_step_are_drawn():
    for bends in ([("r1", 0.0, 0.5, 0.0, 0.0), ("r1", 0.5, 0.5, 0.0, 0.0)], [("r1", 0.0, 1.0, 1e-16, 1e-18)]):
        table = pd.DataFrame(bends, columns=["model", "t", "width", "value", "std"])
        paint = partial(figures.straightness, bends=table, models=["base", "r1"])
        drawn = figures.chart("straightness", "bends", figures.NARROW, paint)
        assert re.findall(r">([\d.]+)</text>", drawn.svg)[-2:] == ["0.8", "1.0"]


def test_the_tag_is_the_verdict_s_first_sentence(made):
    (tag,) = (event for event in made.events if isinstance(event, Tag))
    assert tag == Tag("verdict", html.unescape(re.findall(r"<li>(.*?)</li>", made.page)[0]))


@pytest.mark.parametrize("without", [{"base"}, {"base", "r1", "r2", "student"}], ids=["one", "all"])
def test_models_whose_nearest_images_are_not_known_are_left_out(tmp_path, monkeypatch, without):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    for model in without:
        file = layout.scores(model) / "samples.safetensors"
        kept = {key: value for key, value in read_tensors(file).items() if not key.startswith("nearest")}
        write_tensors(file, kept)
        file = layout.scores(model) / "scores.csv"
        table = pd.read_csv(file, keep_default_na=False)
        table[table.metric != "memorisation"].to_csv(file, index=False)
    list(report(params, Stage("report", "")))
    page = (tmp_path / "reports/index.html").read_text()
    rest = [model for model in params.models if model not in without]
    assert re.findall(r"<h4>(\w+): memorisation", page) == rest
    assert ("Nearest training images" in page) == bool(rest)
    assert ("emorisation" in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)) == bool(rest)
    assert "Between two noises" in page
    assert (tmp_path / "reports/nearest.png").exists() == bool(rest)


def test_the_ceiling_is_what_as_many_pairs_as_samples_would_score(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    file = layout.scores("couplings-r1") / "scores.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table["n_samples"] = 1000
    table.to_csv(file, index=False)

    def said():
        list(report(params, Stage("report", "")))
        page = (tmp_path / "reports/index.html").read_text()
        assert rows_of_page(page)["pairs"][-1][1] == "0.420 ± 0.013"  # as measured
        ceiling = json.loads((tmp_path / "reports/metrics.json").read_text())["ceiling"]
        return ceiling, " ".join(re.search(r"Dotted, (the student's ceiling.*?)</p>", page)[1].split())

    assert params.evaluate.samples == 10_000
    for coefficient, moved, std in ((63.0, -0.0567, "0.01"), (1000.0, 0.0, "0.01"), (None, 0.0, "0.01")):
        floor = {} if coefficient is None else {"coefficient": coefficient, "std": 2.1}
        write_json(layout.FEATURES / "floor.json", floor)
        ceiling, text = said()
        assert ceiling == pytest.approx(0.42 + moved, rel=1e-5)
        text_of = (
            f"the student's ceiling: what the pairs score that it learnt, {ceiling:.3g} ± {std}, measured on 1,000"
        )
        assert text.startswith(f"{text_of} of them")
        assert (" and moved by -0.057 to what 10,000 would score." in text) == (moved != 0)


def test_the_ceiling_of_as_many_pairs_is_as_measured(made):
    assert "moved by" not in made.page
    assert "measured on" not in made.page
    assert ("Copies of the training images score below it" in made.page) == (not made.params.is_points)


def test_large_pictures_stay_small_files():
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (17, 16, 3, 64, 64), generator=g, dtype=torch.uint8)
    shown = {m: {"frames": frames, "frame_times": torch.linspace(0, 1, 17)} for m in ("base", "r1", "r2")}
    sheets = gallery._frames(list(shown), shown, list(shown))
    data = animation(sheets, [0.08] * 17, 600_000)
    assert len(data) <= 600_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames >= 3
        lasting = 0
        for i in range(image.n_frames):
            image.seek(i)
            lasting += image.info["duration"]
    assert lasting == pytest.approx(17 * 80, abs=10 * image.n_frames)


def test_examples_in_tables():
    assert doctest.testmod(tables).failed == 0


@pytest.mark.parametrize("name", ["quality", "pareto", "straightness", "training"])
def test_dvc_plots_ask_for_columns_that_there_are(made, name):
    template = json.loads((ROOT / f".dvc/plots/{name}.json").read_text())
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    (plot,) = (entry[name] for entry in plots if isinstance(entry, dict) and name in entry)
    ((file, y),) = plot["y"].items()
    columns = set(pd.read_csv(made.folder / file).columns)
    assert plot["template"] == name
    assert {plot["x"], y} <= columns
    text = json.dumps(template)
    made_here = set(re.findall(r'"as": "([a-z]+)"', text))
    asked = {field for field in re.findall(r'"field": "([a-z_]+)"', text)} - made_here
    asked |= set(re.findall(r"datum\['([a-z_]+)'\]", text)) - made_here
    assert asked - columns == {"rev"}  # which DVC adds, to tell experiments apart


# --- what a browser draws -----------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars"),
    *("--force-device-scale-factor=1", "--force-prefers-reduced-motion"),
)
TALLEST = 16_000
# The page in a frame of exactly so many CSS pixels: a window of a headless browser has a least width.
WRAPPER = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block; width: {width}px; height: 900px }}</style>
<iframe srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
onload = () => {{
  const frame = document.querySelector("iframe"), inside = frame.contentDocument, root = inside.documentElement;
  frame.style.height = root.scrollHeight + "px";
  const box = e => {{ const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }};
  const all = (what, from = inside) => [...from.querySelectorAll(what)].filter(e => e.getClientRects().length);
  const scale = svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  // The rest of a wide table is out of sight.
  const whole = e => !e.closest(".wide") || box(e)[2] <= box(e.closest(".wide"))[2];
  const size = e => parseFloat(inside.defaultView.getComputedStyle(e).fontSize);
  const cells = table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent));
  document.getElementById("found").textContent = JSON.stringify({{
    client: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight,
    charts: Object.fromEntries(all("svg.chart").map(e => [e.parentElement.id.slice(7), box(e)])),
    labels: all("svg.chart text").map(e => [e.textContent, ...box(e)]),
    homes: all("svg.chart text").map(e => box(e.ownerSVGElement)),
    sizes: all("svg.chart text").map(e => size(e) * scale(e.ownerSVGElement)),
    texts: all("h1, h2, h3, p, li, th, td, figcaption, dd").filter(e => e.textContent.trim() && whole(e)).map(box),
    pictures: all("img").map(e => [e.naturalWidth, ...box(e)]),
    moving: all("#figure-flows img").map(e => e.currentSrc.slice(0, 15)),
    tables: Object.fromEntries(all("table[id]").map(e => [e.id.slice(6), cells(e)])),
    wide: all(".wide").map(e => [e.clientWidth, e.scrollWidth]),
  }});
}};
</script>"""


class Drawn(NamedTuple):
    found: dict
    pixels: np.ndarray

    def box(self, left, top, right, bottom):
        """The pixels of a box, as far as they are in the picture."""
        return self.pixels[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1]


def draw(page, folder, width, scheme):
    """The page in a browser: what lies where, and a screenshot of all of it."""
    wrapper, shot = folder / f"wrapper-{width}.html", folder / f"{scheme}-{width}.png"
    wrapper.write_text(WRAPPER.format(page=html.escape(page), width=width))
    flags = [
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}",
        f"--window-size={max(width, 800)},{TALLEST}",
        f"--screenshot={shot}",
        "--dump-dom",
    ]
    done = subprocess.run([CHROMIUM, *flags, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text, done.stderr
    found = json.loads(html.unescape(text[1]))
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))[: found["height"], :width].astype(int)
    return Drawn(found, pixels)


def luminance(colour):
    """Relative luminance of sRGB in 0 to 255, as WCAG 2 defines it."""
    c = np.asarray(colour) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    high, low = np.maximum(luminance(a), luminance(b)), np.minimum(luminance(a), luminance(b))
    return (high + 0.05) / (low + 0.05)


def rgb(colour):
    return np.array(list(bytes.fromhex(colour[1:])))


def test_series_are_readable_on_both_backgrounds():
    style = (ROOT / "flows/report/page.html").read_text()
    papers = re.findall(r"--paper: (#[0-9a-f]{6})", style)
    assert len(papers) == 2
    for colour, paper in product(figures.COLOURS, papers):
        assert contrast(rgb(colour), rgb(paper)) >= 3, (colour, paper)
    assert len(set(figures.COLOURS)) == len(figures.COLOURS)


VIEWS = [("light", 1000), ("dark", 390)]  # colours do not depend on the width, nor places on the scheme


@pytest.fixture(scope="module", params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def view(request, made, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs a browser: chromium, chromium-browser or google-chrome")
    scheme, width = request.param
    return made, scheme, width, draw(made.page, tmp_path_factory.mktemp("drawn"), width, scheme)


BACKGROUND = {"light": (255, 255, 255), "dark": (20, 23, 28)}


@pytest.mark.slow
def test_the_background_is_that_of_the_scheme(view):
    _, scheme, _, drawn = view
    corners = drawn.pixels[[3, 3, -3, -3], [3, -3, 3, -3]]
    assert (corners == BACKGROUND[scheme]).all()
    share = (drawn.pixels == BACKGROUND[scheme]).all(2).mean()
    assert share > 0.5


@pytest.mark.slow
def test_nothing_hangs_over_the_edge(view):
    _, _, width, drawn = view
    found = drawn.found
    assert found["client"] == width
    assert found["scroll"] == width
    for left, _, right, _ in [*found["charts"].values()]:
        assert 0 <= left < right <= width
        assert right - left > 0.8 * min(width, 400)  # as large as there is room
    for client, _ in found["wide"]:
        assert client <= width
    if width == 390:
        assert any(scroll > client for client, scroll in found["wide"])  # wide tables scroll in their box


@pytest.mark.slow
def test_text_in_charts_is_whole_and_large_enough(view):
    _, _, _, drawn = view
    found = drawn.found
    assert len(found["labels"]) > 100
    for (text, left, top, right, bottom), home in zip(found["labels"], found["homes"], strict=True):
        assert left >= home[0] - 1, text
        assert top >= home[1] - 1, text
        assert right <= home[2] + 1, text
        assert bottom <= home[3] + 1, text
    assert min(found["sizes"]) >= 10


@pytest.mark.slow
def test_text_stands_out(view):
    _, scheme, _, drawn = view
    boxes = [(text, *box) for text, *box in drawn.found["labels"]]
    boxes += [("page", *box) for box in drawn.found["texts"]]
    for text, left, top, right, bottom in boxes:
        strongest = contrast(drawn.box(left, top, right, bottom), BACKGROUND[scheme]).max()
        assert strongest >= 4.5, (text, left, top)


@pytest.mark.slow
def test_every_line_is_painted_in_its_colour(view):
    made, _, width, drawn = view
    models, flows, rounds = made.params.models, made.params.models[:-1], made.params.models[1:-1]
    main = "phone" if width < 700 else "curves"
    expected = {main: models, "pareto": models, "cost": models, "training": models}
    expected |= {"straightness": flows, "transport": flows}
    expected |= {f"couplings-{what}": rounds for what in ("cost", "norm", "curvature")}
    assert set(drawn.found["charts"]) == set(expected)
    for chart, box in drawn.found["charts"].items():
        # Above the legend, whose swatches have the same colours.
        left, top, right, bottom = box
        pixels = drawn.box(left, top, right, top + 0.72 * (bottom - top))
        for model in models:
            off = abs(pixels - rgb(figures.colour_of(models, model))).max(2)
            painted = int((off <= 6).sum())
            if model in expected[chart]:
                # A student has one point in the charts over NFE, a base may cost the most or the least.
                assert painted >= 20, (chart, model, painted)
            else:
                assert painted == 0, (chart, model, painted)


@pytest.mark.slow
def test_error_bands_are_drawn(view):
    made, scheme, width, drawn = view
    if not made.params.is_points:
        pytest.skip("these errors are smaller than a line is wide")
    left, top, right, bottom = drawn.found["charts"]["phone" if width < 700 else "curves"]
    pixels = drawn.box(left, top, right, top + 0.72 * (bottom - top))
    for model in made.params.models[:-1]:
        shade = 0.25 * rgb(figures.colour_of(made.params.models, model)) + 0.75 * np.array(BACKGROUND[scheme])
        assert (abs(pixels - shade).max(2) <= 4).sum() >= 100, model


@pytest.mark.slow
def test_the_floor_and_the_ceiling_are_drawn_across(view):
    made, scheme, width, drawn = view
    left, top, right, bottom = drawn.found["charts"]["phone" if width < 700 else "curves"]
    pixels = drawn.box(left, top, right, top + 0.9 * (bottom - top))
    dotted = (abs(pixels - rgb(figures.colour_of(made.params.models, "student"))).max(2) <= 40).sum(1)
    inked = np.flatnonzero((contrast(pixels, BACKGROUND[scheme]) > 3).sum(1) > 0.3 * (right - left))
    assert dotted.max() > 0.2 * (right - left)
    assert len(inked) >= 2
    assert inked[-1] - inked[0] > 5  # the dashes, well above the axis


@pytest.mark.slow
def test_tables_are_in_the_page_as_drawn(view):
    made, _, _, drawn = view
    assert drawn.found["tables"] == rows_of_page(made.page)


@pytest.mark.slow
def test_pictures_are_drawn_pixel_by_pixel(view):
    made, scheme, width, drawn = view
    pictures = drawn.found["pictures"]
    assert all(natural > 0 for natural, *_ in pictures)
    assert drawn.found["moving"] == ["data:image/png;"]  # the still one: less motion was asked for
    for _, left, top, right, bottom in pictures:
        if right < width:
            assert len(np.unique(drawn.box(left, top, right, bottom).reshape(-1, 3), axis=0)) > 3
    natural, left, top, right, bottom = pictures[0]
    if made.params.is_points:
        shown = drawn.box(left, top, right, bottom)
        assert (shown[:, :, 2] - shown[:, :, 0] > 30).mean() > 0.05  # the base's dots are blue
        return
    source = re.search(r'alt="samples of base at 1 NFE"', made.page).start()
    data = re.findall(r'src="data:image/png;base64,([^"]*)"', made.page[:source])[-1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        sheet = np.asarray(image).astype(int)
    scale = (right - left) / natural
    y, x = np.mgrid[: sheet.shape[0], : sheet.shape[1]]
    middle = drawn.pixels[(top + (y + 0.5) * scale).astype(int), (left + (x + 0.5) * scale).astype(int)]
    there = sheet[:, :, 3] > 0
    assert (middle[there] == sheet[there][:, :3]).all()
    assert (middle[~there] == BACKGROUND[scheme]).all()
