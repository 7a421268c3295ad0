"""What the postman's letterboxes have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from flows.local.process import redacted


@dataclass(frozen=True)
class Outcome:
    """What one look at all journals found: stages at work, ends not told yet, and what went wrong."""

    live: bool
    waiting: bool
    problems: list[str]


class Letterbox(Protocol):
    """Where journals go: a `reader` of them that looks at all, again and again."""

    reader: str
    pause_seconds: float

    def tick(self, *, leaving: bool) -> Outcome: ...


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Notes a failure and goes on: whatever it is, the journal stays and the others are not held up."""
    try:
        yield
    except Exception as error:
        lines = redacted(f"{type(error).__name__}: {error}").splitlines()
        problems.append(next((line for line in lines if "sqlite3." in line), lines[0]))
