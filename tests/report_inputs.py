"""What the stages before the report leave, in numbers made up, and the report that is made of it."""

import csv
import hashlib
import html
import json
import math
import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from flows import layout
from flows.params import preset
from flows.params.reading import validate
from flows.stages.report import report
from flows.workshop.entry import Stage
from fmcore.disk.dataset import save_dataset
from fmcore.disk.files import write_json, write_tensors
from fmcore.flow.pixels import quantise

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
        write_json(
            folder / "about.json", {"flops": 2_300_000, "sha256": hashlib.sha256(model.encode()).hexdigest()}
        )
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


MADE: dict[str, Made] = {}


def made_once(kind, tmp_path_factory):
    """The usual report on images or on points, made once for all test files: drawing it takes seconds."""
    if kind not in MADE:
        MADE[kind] = make(tmp_path_factory.mktemp(kind), usual(kind))
    return MADE[kind]


def groups_of_page(page):
    """The names over the columns of the table of scores, each as often as it has columns."""
    found = re.findall(r'<th class="group" scope="colgroup" colspan="(\d+)">(.*?)</th>', page)
    return [name for count, name in found for _ in range(int(count))]


def verdict_of_page(page):
    """The lines of the verdict, none if there is none."""
    box = re.search(r"<h3>Does another round pay\?</h3>(.*?)</section>", page, re.DOTALL)
    return [html.unescape(line) for line in re.findall(r"<li>(.*?)</li>", box[1])] if box else []


def rows_of_page(page):
    """Every table of the page with an id, as texts."""
    found = {}
    for name, body in re.findall(r'<table id="table-([a-z]+)">(.*?)</table>', page, re.DOTALL):
        rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found[name] = [[html.unescape(cell) for cell in row] for row in cells]
    return found


def usual(kind):
    """Parameters of a report on images or on points."""
    return params_of("digits", metrics=["kid", "precision_recall"]) if kind == "images" else params_of("smoke")
