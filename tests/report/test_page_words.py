"""What the page says first, what it tells where a pointer rests, and how it shows the data."""

import html
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch

from flows.report import data, figures, hover, tables, words
from flows.report.results import read_results
from fmcore.disk.dataset import PIXEL, Dataset
from fmcore.score.estimates import Estimate
from fmcore.verdict import Choice, Sampled
from report_inputs import build, made_once, params_of


@pytest.fixture(scope="module", params=["images", "points"])
def made(request, tmp_path_factory):
    return made_once(request.param, tmp_path_factory)


def test_the_page_begins_with_the_answer(made):
    curves = pd.read_csv(made.reports / "curves.csv", keep_default_na=False)
    few = curves[curves.nfe == curves.nfe.min()].sort_values("value").iloc[0]
    base = curves[curves.model == "base"].sort_values("value").iloc[0]
    said = html.unescape(re.search(r"<h1>(.*?)</h1>", made.page)[1])
    best = f"the base at its best ({base.value:.3g}, {base.solver} at {base.nfe})"
    ratio = few.value / base.value
    against = f"{ratio:.1f} times as far" if ratio > 1.1 else f"{100 * ratio - 100:.2g} % farther"
    joined = "from the data as" if ratio > 1.1 else "from the data than"
    assert said == f"One evaluation of the {few.model}: {few.value:.3g}, {against} {joined} {best}."
    assert made.page.index("<h1>") < made.page.index("<svg") < made.page.index("<table")


@pytest.mark.parametrize(
    ("value", "std", "words_"),
    [
        (0.10, 0.01, "4.0 times nearer to the data than the base at its best (0.4, euler at 64)"),
        (0.37, 0.01, "7.5 % nearer to the data than the base at its best (0.4, euler at 64)"),
        (0.38, 0.02, "as near to the data as the base at its best (0.4, euler at 64)"),
        (0.42, 0.005, "5 % farther from the data than the base at its best (0.4, euler at 64)"),
        (0.80, 0.01, "2.0 times as far from the data as the base at its best (0.4, euler at 64)"),
    ],
)
def test_the_answer_says_no_more_than_is_known(tmp_path, monkeypatch, value, std, words_):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    results = read_results(params)
    base = Sampled("base", "euler", 64, Estimate(0.4, 0.001, 10))
    few = Sampled("student", "euler", 1, Estimate(value, std, 10))
    monkeypatch.setattr(words, "sampled_of", lambda _: [base, few])
    monkeypatch.setattr(words, "choices_of", lambda _: (Choice(1, few, ()),))
    assert words.answer(results).sentence == f"One evaluation of the student: {value:.3g}, {words_}."


def test_a_place_of_the_chart_tells_all_that_was_measured_there(made):
    curves = pd.read_csv(made.reports / "curves.csv", keep_default_na=False)
    for chart in ("curves", "phone"):
        svg = re.search(rf'<figure id="figure-{chart}".*?</svg>', made.page, re.DOTALL)[0]
        told = re.findall(r'tabindex="0" role="img" aria-label="(\d+) evaluations?: ([^"]*)">', svg)
        assert [int(nfe) for nfe, _ in told] == sorted(curves.nfe.unique())
        for nfe, text in told:
            rows = curves[curves.nfe == int(nfe)].sort_values("value")
            found = [re.match(r"(\w+)(?:, (\w+))?: ([\d.]+) ", line).groups() for line in text.split("; ")]
            assert [name for name, *_ in found] == rows.model.tolist()[: figures.MOST_TOLD]
            for (_, how, value), row in zip(found, rows.itertuples(), strict=False):
                assert (how or "euler") == row.solver
                assert float(value) == pytest.approx(row.value, rel=0.1)
        assert "<script" not in svg


def test_zones_lie_where_their_numbers_are_drawn():
    tips = []

    def paint(figure):
        axes = figure.add_subplot()
        axes.set(xlim=(0, 10), ylim=(0, 1))
        tips.append(hover.Tip(axes, (5, 0.5), "middle", [("#123456", "a < b")]))
        tips.append(hover.Tip(axes, (5, 0.5), "all", [("#123456", "c")], span=(0, 10)))
        axes.set_position((0.25, 0.25, 0.5, 0.5))
        figure.set_layout_engine("none")
        return tips

    svg = figures.chart("test", "a test", (4, 3), paint).svg
    x, y = map(float, re.search(r'<circle class="zone" cx="([\d.]+)" cy="([\d.]+)"', svg).groups())
    assert (x, y) == pytest.approx((144, 108), abs=0.1)  # of 4 x 3 inches, at 72 an inch
    rect = re.search(r'<rect class="zone" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    assert list(map(float, rect.groups())) == pytest.approx([72, 54, 144, 108], abs=0.1)
    assert "a &lt; b" in svg
    assert 'role="group"' in svg


def test_every_box_of_a_tip_is_within_its_chart(made):
    for svg in re.findall(r'<svg class="chart".*?</svg>', made.page, re.DOTALL):
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
        for found in re.findall(
            r'tip box"[^>]*><rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
        ):
            x, y, w, h = map(float, found)
            assert x >= 0
            assert y >= 0
            assert x + w <= width
            assert y + h <= height


def test_real_data_stand_over_samples(made):
    sections = re.findall(
        r'<section(?: class="real")?><h3>(\S+?)(?: data)?(?: <span>(.*?)</span>)?</h3>', made.page
    )
    assert sections[0] == ("real", "")
    assert sections[-1][0] == "base"
    curves = pd.read_csv(made.reports / "curves.csv", keep_default_na=False)
    euler = curves[curves.solver == "euler"]
    assert sections[-1][1].startswith(f"{euler.nfe.max()} evaluations")
    for nfe, spoken in ((1, "one evaluation"), (2, "two evaluations"), (4, "four evaluations")):
        rows = euler[euler.nfe == nfe].sort_values("value")
        told = [name for name, how in sections if how.startswith(spoken)]
        assert told == rows.model.tolist()[:1]


def test_the_data_are_counted_and_copies_found():
    g = torch.Generator().manual_seed(0)
    x1 = torch.randint(0, 200, (60, 1, 4, 4), generator=g, dtype=torch.uint8)
    x1[50], x1[51] = x1[3], x1[3]
    label = torch.tensor([0] * 40 + [1] * 20)
    found = data.shown(
        Dataset(x1, label, 2, x1, PIXEL, names=("cat", "dog")),
        {"count": 60, "about": {"done": {"rgb": 7, "new": 2}, "misfits": 5, "largest_misfit": 0.25}},
    )
    assert [(one.name, one.samples) for one in found.classes] == [("cat", 40), ("dog", 20)]
    assert found.sentence.startswith("60 grey images of 4x4 in 2 classes of 20 to 40. They use ")
    assert found.sentence.endswith("2 are copies of others, one of them 3 times.")
    assert f"use {len(x1.unique())} of 256 levels" in found.sentence
    assert found.done == [
        "7 of 60 were grey and became three equal channels",
        "2 of 60 new",
        "5 of 60 had another form: up to 25 % of a side was changed",
    ]
    assert "No image is there twice" in data.shown(Dataset(x1[:50], None, None, x1[:50], PIXEL), {}).sentence


def test_what_is_empty_goes():
    rows = [["a", "1", "", ""], ["b", "", "", ""], ["c", "", "", "4"]]
    table = tables.Table("t", ["k", "x", "y", "z"], rows, 1, frozenset({(2, 3)}), (("", 1), ("g", 2), ("h", 1)))
    found = tables.pruned(table)
    assert found.columns == ["k", "x", "z"]
    assert found.rows == [["a", "1", ""], ["c", "", "4"]]
    assert found.strong == {(1, 2)}
    assert found.groups == (("", 1), ("g", 1), ("h", 1))


def test_words_come_before_tables(made):
    """Between a heading of a section and its first table there is a sentence."""
    body = made.page[made.page.index("<main>") :]
    heads = [match.start() for match in re.finditer("<h2", body)] + [len(body)]
    for start, stop in pairwise(heads[:-2]):
        section = body[start:stop]
        first = min(
            (section.index(tag) for tag in ("<table", "<figure", "<dl") if tag in section), default=len(section)
        )
        assert "<p>" in section[:first], section[:80]
    assert Path(made.reports / "data.png").exists()
