"""The report's page is drawn as it should be.

On a desk and on a phone, in light and in dark: what a browser draws is looked at pixel by pixel, if there is one.
"""

import base64
import io
import re
from itertools import product

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, contrast, draw, rgb
from devtools import browsing
from flows.report import figures
from report_inputs import made_once, rows_of_page
from repository import ROOT


@pytest.fixture(scope="module", params=["images", "points"])
def made(request, tmp_path_factory):
    return made_once(request.param, tmp_path_factory)


def test_series_are_readable_on_both_backgrounds():
    style = (ROOT / "flows/report/style.html").read_text()
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
    expected |= {} if made.params.is_points else {"levels": []}
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
    named = re.findall(r'<img [^>]*alt="([^"]*)"', made.page)
    natural, left, top, right, bottom = pictures[named.index("samples of base at 1 NFE")]
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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
def test_a_pointer_and_the_keyboard_show_what_a_place_tells(made, tmp_path):
    """From a file, with no script of the page's."""
    shown = "getComputedStyle(document.querySelectorAll('#figure-curves .box')[%d]).display"
    with browsing(tmp_path) as tab:
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        tab.open((made.reports / "index.html").as_uri())
        tab.wait_for(
            "document.readyState === 'complete' && document.querySelectorAll('#figure-curves .box').length > 2"
        )
        assert [tab.value(shown % i) for i in (0, 1)] == ["none", "none"]
        tab.value("document.querySelectorAll('#figure-curves [tabindex]')[1].focus()")
        assert [tab.value(shown % i) for i in (0, 1)] == ["none", "block"]
        tab.value("document.activeElement.blur()")
        zone = "document.querySelector('#figure-curves .zone')"
        tab.value(f"{zone}.scrollIntoView({{block: 'center'}})")
        x, y = tab.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({zone}.getBoundingClientRect())")
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert tab.wait_for(f"{shown % 0} === 'block'", 20)
        assert tab.value(shown % 1) == "none"
