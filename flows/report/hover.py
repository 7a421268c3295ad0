"""What a chart of the page tells where a pointer rests or the keyboard's focus is: no script, two rules of style.

A zone is a part of a chart. The box that belongs to it lies in the SVG too, and is shown while the pointer is over
the zone or the focus on it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 9.0  # of the text, in the units of the SVG, which are points
WIDTH, LINE = 0.56 * SIZE, 1.4 * SIZE  # of a character, on average and rather more; of a line
PAD, RADIUS = 6.0, 8.0


class Tip(NamedTuple):
    """What a place of a chart tells.

    Main arguments:
        at: x and y, in the units of the axes.
        title: the first line, e.g. the number of evaluations.
        lines: a colour and a text each.
        span: for a zone as high as the axes, where it begins and ends in x; None for a point.
    """

    axes: "Axes"
    at: tuple[float, float]
    title: str
    lines: Sequence[tuple[str, str]]
    span: tuple[float, float] | None = None


def overlay(figure: "Figure", tips: Sequence[Tip]) -> str:
    """The zones and their boxes as SVG, in the places where the figure draws what they are about.

    Zones as high as the axes take the keyboard's focus. Points do not, since there may be dozens: the page has
    their numbers in a table.
    """
    return "\n".join(_zone(figure, tip) for tip in tips)


def _zone(figure: "Figure", tip: Tip) -> str:
    width, height = (72 * side for side in figure.get_size_inches())
    scale = 72 / figure.dpi

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = tip.axes.transData.transform((x, y))
        return float(right) * scale, height - float(up) * scale

    x, y = place(*tip.at)
    bounds = tip.axes.get_window_extent()
    top, bottom = height - bounds.y1 * scale, height - bounds.y0 * scale
    label = f'aria-label="{escape(_said(tip))}"'
    if tip.span is None:
        shape = f'<circle class="zone" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS:g}"/>'
        head, anchor = f'<g class="hover" {label}>', y
    else:
        low = max(place(tip.span[0], tip.at[1])[0], bounds.x0 * scale)
        high = min(place(tip.span[1], tip.at[1])[0], bounds.x1 * scale)
        sides = f'width="{high - low:.1f}" height="{bottom - top:.1f}"'
        shape = f'<rect class="zone" x="{low:.1f}" y="{top:.1f}" {sides}/>'
        shape += f'<path class="tip rule" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        head, anchor = f'<g class="hover" tabindex="0" role="img" {label}>', top
    return f"{head}{shape}{_box(tip, (x, anchor), (width, height))}</g>"


def _box(tip: Tip, at: tuple[float, float], page: tuple[float, float]) -> str:
    """The box beside a place, on the side where there is room."""
    wide = WIDTH * max(len(tip.title), *(len(text) + 2.5 for _, text in tip.lines)) + 2 * PAD
    high = LINE * (1 + len(tip.lines)) + 1.4 * PAD
    left = at[0] + 10 if at[0] + 10 + wide < page[0] else at[0] - 10 - wide
    left, top = max(2.0, min(left, page[0] - wide - 2)), max(2.0, min(at[1], page[1] - high - 2))
    parts = [f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="4"/>']
    rows = [(None, tip.title), *tip.lines]
    for i, (colour, text) in enumerate(rows):
        y = top + 0.7 * PAD + LINE * (i + 0.72)
        x = left + PAD + (0.0 if colour is None else 2.2 * WIDTH)
        if colour is not None:
            dot = f'cx="{left + PAD + 3:.1f}" cy="{y - 0.33 * SIZE:.1f}" r="3"'
            parts.append(f'<circle {dot} fill="{colour}"/>')
        strong = ' class="title"' if colour is None else ""
        parts.append(f'<text{strong} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')
    return f'<g class="tip box" aria-hidden="true">{"".join(parts)}</g>'


def _said(tip: Tip) -> str:
    return f"{tip.title}: {'; '.join(text for _, text in tip.lines)}"
