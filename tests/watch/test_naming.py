"""What runs are called, how they are coloured and sorted, what is said of them."""

from itertools import combinations, product

import pytest

from browser import contrast, rgb
from colours import ciede2000, cielab
from flows.params.files import Difference
from flows.report import figures
from flows.watch import naming


def test_what_tells_runs_apart_comes_first():
    difference = naming.differs(Difference("digits", {"couple.nfe": 8}), "digits")
    assert naming.model_name("r2", "digits", 12, difference) == "r2 / couple.nfe=8 / digits 12"
    assert naming.pipeline_name("digits", 12, difference) == "digits 12 / couple.nfe=8"
    assert naming.model_name("r2", "digits", 12, "") == "r2 / digits 12"
    assert naming.differs(Difference("smoke", {"seed": 3}), "checkerboard") == "smoke seed=3"


@pytest.mark.parametrize("count", range(1, 30))
def test_long_differences_are_cut_and_counted(count):
    words = [f"key{i}={i}" for i in range(count)]
    text = naming.shortened(words)
    assert len(text) <= naming.LONGEST
    kept = text.split()
    more = int(kept.pop().removeprefix("+")) if kept[-1].startswith("+") else 0
    assert kept == words[: len(kept)]
    assert len(kept) + more == count


def test_one_long_word_is_cut():
    assert naming.shortened(["x" * 100]) == "x" * (naming.LONGEST - 4) + "..."


def test_a_pipeline_has_the_reports_colours():
    assert [naming.colour(place, 1) for place in range(10)] == list(figures.COLOURS)
    assert [naming.colour(place, 4) for place in range(10)] == list(figures.COLOURS)


# Of Sharma, Wu, Dalal: The CIEDE2000 Color-Difference Formula (2005), table 1.
@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.0, 2.0), (50, 0, 0), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_differences_of_colours_are_those_of_the_formulas_authors(one, other, apart):
    assert ciede2000(one, other) == pytest.approx(apart, abs=1e-4)


def test_models_of_three_pipelines_are_told_apart():
    """By CIEDE2000, in which 1 can just be seen; neighbours in a legend are told apart from 10 on or so."""
    runs = {(place, number): naming.colour(place, number) for number in (4, 5, 6) for place in range(10)}
    for (one, first), (other, second) in combinations(runs.items(), 2):
        assert ciede2000(cielab(rgb(first)), cielab(rgb(second))) >= 12, (one, other)


@pytest.mark.parametrize("page", ["#ffffff", "#11171c"], ids=["light", "dark"])
def test_models_of_three_pipelines_stand_out_from_the_page(page):
    for place, number in product(range(10), (1, 2, 3)):
        assert contrast(rgb(naming.colour(place, number)), rgb(page)) >= 3, (place, number)


def test_the_newest_pipeline_comes_first_and_its_models_in_order():
    runs = [(number, place) for number in (1, 9, 10, 345) for place in (0, 1, 11)]
    found = sorted(runs, key=lambda run: naming.order(run[1], run[0]))
    assert found == sorted(runs, key=lambda run: (-run[0], run[1]))


def test_the_description_says_what_matters():
    tags = {
        "fmcore.verdict": "It pays. At one evaluation it won.",
        "fmcore.models": "base student",
        "fmcore.preset": "digits",
        "fmcore.differs": "couple.nfe=8\nseed=1",
        "dvc.exp": "lucky-newt",
        "prefect.page.base": "http://127.0.0.1/1",
    }
    metrics = {
        "at 1/student": 0.412,
        "at 4/student": 0.05,
        "at 1/base": 73.3,
        "at 1/best of all": 0.412,
        "loss": 1.0,
    }
    assert naming.description(tags, metrics).split("\n\n") == [
        "**It pays.**",
        "| evaluations of the network | 1 | 4 |\n| --- | --- | --- |\n| base | 73.3 |  |\n"
        "| student | 0.412 | 0.05 |\n| best of all | 0.412 |  |",
        "At one evaluation it won.",
        "Preset `digits`, but for:",
        "- `couple.nfe=8`\n- `seed=1`",
        "DVC experiment `lucky-newt`.",
        "In Prefect: [base](http://127.0.0.1/1).",
    ]
    assert naming.description({}, {"loss": 1.0}) == ""
