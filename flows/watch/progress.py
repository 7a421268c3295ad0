"""How far a stage is, for Prefect's page: rate and time left in words, and the loss as a curve."""

import base64
from collections.abc import Sequence
from html import escape
from math import log10

from flows.watch.journal import Record
from fmcore import progress

POINTS = 400  # of a curve, at most twice as many
WIDTH, HEIGHT, EDGE = 640, 220, 36
COLOUR, INK = "#2b7de0", "#808690"


def pace(first: Record, last: Record) -> str:
    """The rate between two records of progress and the time left, as `1.23k images/s, 02:15 left`; or nothing.

    It counts from the first record that was seen, so what an earlier, stopped run did makes it no faster.
    """
    done, seconds = last.of["done"] - first.of["done"], last.time - first.time
    if done <= 0 or seconds <= 0:
        return ""
    return progress.pace(done, seconds, last.of["total"] - last.of["done"], last.of["unit"])


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, or every second of them if they are too many."""
    return points[::2] if len(points) > 2 * POINTS else points


def curve(points: Sequence[tuple[float, float]], name: str) -> str:
    """A curve over images seen as Markdown, on a logarithmic axis if all of its values are positive."""
    by_log = all(y > 0 for _, y in points)
    ys = [log10(y) if by_log else y for _, y in points]
    right, low, high = max(x for x, _ in points) or 1.0, min(ys), max(ys)
    span = (high - low) or 1.0
    places = " ".join(
        f"{EDGE + (WIDTH - 2 * EDGE) * x / right:.1f},{HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (y - low) / span:.1f}"
        for (x, _), y in zip(points, ys, strict=True)
    )
    texts = [
        (EDGE, EDGE - 10, f"{name}, {'logarithmic, ' if by_log else ''}highest {max(y for _, y in points):.4g}"),
        (
            EDGE,
            HEIGHT - 10,
            f"lowest {min(y for _, y in points):.4g}, now {points[-1][1]:.4g} at {right:,.0f} images",
        ),
    ]
    words = "".join(f'<text x="{x}" y="{y}">{escape(text)}</text>' for x, y, text in texts)
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" fill="{INK}" '
        f'font-family="sans-serif" font-size="14"><polyline points="{places}" fill="none" stroke="{COLOUR}" '
        f'stroke-width="2"/>{words}</svg>'
    )
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()})"
