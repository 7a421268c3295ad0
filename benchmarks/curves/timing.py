"""Medians of seconds, shares and tables."""

import statistics
import time
from collections.abc import Callable


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of some work, after a turn that does not count."""
    work()
    return statistics.median(timed(work) for _ in range(repeats))


def table(title: str, heads: str, rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    columns = heads.count("|") + 1
    return ["", title, "", f"| {heads} |", f"|{' --- |' * columns}", *(f"| {' | '.join(row)} |" for row in rows)]


def of_whole(part: float, whole: float) -> str:
    """A share in per cent."""
    return f"{100 * part / whole:.2f} %"
