"""Progress on long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0


class Progress:
    """A bar on a terminal; elsewhere a line every ten seconds and at the end, none for work of under a second.

    Main arguments:
        what: the work, e.g. "train base".
        total: how many `unit`s there are.
        first: how many an earlier, stopped run did.
    """

    def __init__(self, what: str, total: int, unit: str, first: int = 0) -> None:
        self.start = self._spoke = time.monotonic()
        self.first = first
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=first,
            unit=f" {unit}",
            unit_scale=True,
            # Without a terminal tqdm must not draw, but still counts and formats.
            file=None if sys.stderr.isatty() else _Nowhere(),
        )
        self._terminal = sys.stderr.isatty()

    def to(self, done: int) -> None:
        """Says that `done` of the total are done."""
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        over = done == self._bar.total and self.seconds > 1
        if not self._terminal and (over or now - self._spoke > LINE_EVERY_SECONDS):
            self._spoke = now
            print(str(self._bar), file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the bar was opened."""
        return time.monotonic() - self.start

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def pace(done: float, seconds: float, left: float, unit: str) -> str:
    """The rate of what was done, and the time that what is left takes at it.

    >>> pace(12_345, 10, 987_655, "images")
    '1.23k images/s, 13:20 left'
    """
    rate = done / seconds
    return f"{tqdm.format_sizeof(rate)} {unit}/s, {tqdm.format_interval(left / rate)} left"


class _Nowhere:
    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...
