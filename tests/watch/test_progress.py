"""Rate, time left and the loss curve that Prefect's page shows."""

import base64
import re
from xml.etree import ElementTree

import pytest

from flows.watch.journal import Record
from flows.watch.progress import HEIGHT, POINTS, WIDTH, curve, pace, thinned


def progress(time, done, total=1000):
    return Record("progress", time, {"what": "train base", "done": done, "total": total, "unit": "images"}, 0)


def test_rate_and_time_left_count_from_the_first_record():
    assert pace(progress(100.0, 400), progress(110.0, 600)) == "20.0 images/s, 00:20 left"
    assert pace(progress(0.0, 0, 10**6), progress(10.0, 12_345, 10**6)) == "1.23k images/s, 13:20 left"


@pytest.mark.parametrize("last", [progress(100.0, 400), progress(100.0, 500), progress(120.0, 400)])
def test_nothing_is_said_of_what_is_not_known(last):
    assert pace(progress(100.0, 400), last) == ""


def drawn(points):
    encoded = re.fullmatch(r"!\[loss\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", curve(points, "loss"))[1]
    svg = ElementTree.fromstring(base64.b64decode(encoded))
    line = svg.find("{*}polyline").get("points").split()
    return [tuple(map(float, place.split(","))) for place in line], [text.text for text in svg.findall("{*}text")]


@pytest.mark.parametrize(("values", "scale"), [((1.0, 0.1, 0.01), "logarithmic"), ((1.0, -1.0, -3.0), "")])
def test_a_curve_falls_evenly_on_its_axis(values, scale):
    places, texts = drawn([(100.0 * i, value) for i, value in enumerate(values)])
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.2)
    assert y0 < y1 < y2, "down the page"
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert ("logarithmic" in texts[0]) == bool(scale)
    assert f"now {values[-1]:.4g} at 200 images" in texts[1]


def test_a_flat_curve_and_one_of_a_single_step_are_drawn():
    assert len(drawn([(0.0, 1.0), (0.0, 1.0)])[0]) == 2


def test_a_long_curve_is_thinned_and_keeps_its_shape():
    points = [(float(i), 1.0 / (1 + i)) for i in range(2 * POINTS + 1)]
    assert thinned(points) == points[::2]
    assert thinned(points[:POINTS]) == points[:POINTS]
