"""The terminal's bars: one for each piece of work, and its throughput."""

import pytest

from flows.events import Metrics, Progress
from flows.launch import runner
from flows.launch.runner import Bars


@pytest.fixture
def opened(monkeypatch):
    """The titles of the bars, in order, and a clock that goes by a second a look."""
    titles = []

    class Bar:
        def __init__(self, title, total, unit, first):
            titles.append(title)
            self.first, self.seconds = first, 2.0

        def to(self, done):
            pass

        def close(self):
            pass

    monkeypatch.setattr(runner, "Progress", Bar)
    return titles


def test_work_within_other_work_has_a_bar_of_its_own(opened):
    """As where a round makes the noise of its real data anew while it trains."""
    with Bars() as bars:
        rates = []
        for event in (
            Progress("train", 0, 100, of="r1"),
            Progress("train", 50, 100, of="r1"),
            Progress("invert", 0, 30, "pairs", of="r1"),
            Progress("invert", 30, 30, "pairs", of="r1"),
            Progress("train", 60, 100, of="r1"),
            Progress("train", 100, 100, of="r1"),
        ):
            rates += bars(event)
        assert opened == ["train r1", "invert r1", "train r1"]
        assert rates == [
            Metrics(0, {"cost/invert_pairs_per_second": 15.0}),
            Metrics(0, {"cost/train_images_per_second": 20.0}),
        ]
    assert bars.seconds == 6.0
