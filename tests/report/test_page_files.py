"""The report's page needs no other file; its pictures are files too, and small ones."""

import base64
import io
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from flows import layout
from flows.events import Picture, Table
from flows.report import figures
from flows.report import pictures as gallery
from flows.stages.report import report
from flows.workshop.entry import Stage
from flows.workshop.workspace import workspace
from fmcore.disk.files import read_tensors, write_tensors
from fmcore.pictures import animation
from report_inputs import build, made_once, make, params_of


@pytest.fixture(scope="module", params=["images", "points"])
def made(request, tmp_path_factory):
    return made_once(request.param, tmp_path_factory)


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
    # Those of a model are kept when they are told, and then written over.
    shown = [event for event in made.events if isinstance(event, Picture) and not event.of]
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


def test_bends_that_are_all_zero_or_lie_on_one_step_are_drawn():
    for bends in ([("r1", 0.0, 0.5, 0.0, 0.0), ("r1", 0.5, 0.5, 0.0, 0.0)], [("r1", 0.0, 1.0, 1e-16, 1e-18)]):
        table = pd.DataFrame(bends, columns=["model", "t", "width", "value", "std"])
        paint = partial(figures.straightness, bends=table, models=["base", "r1"])
        drawn = figures.chart("straightness", "bends", figures.NARROW, paint)
        assert re.findall(r">([\d.]+)</text>", drawn.svg)[-2:] == ["0.8", "1.0"]


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
