"""What a stage says while it works.

A stage is a generator: it computes, writes its outputs, and *yields* the events below. Whoever runs it
(`flows.launch`) turns them into progress bars, MLflow records and Prefect artifacts. So no stage knows
any of those tools, and a stage runs the same with all, some or none of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Progress(NamedTuple):
    """`done` of `total` `unit`s of the work `what`, say "train"; `done == 0` opens it, `done == total` closes it.

    `of` is what the work is done on, e.g. a model.
    """

    what: str
    done: int
    total: int
    unit: str = "images"
    of: str = ""

    @property
    def title(self) -> str:
        """The work and what it is done on."""
        return f"{self.what} {self.of}".rstrip()


class Metrics(NamedTuple):
    """Numbers at one `step` (images seen for training curves, NFE for scores, 0 for single values)."""

    step: int
    values: dict[str, float]


class Picture(NamedTuple):
    """A PNG file worth looking at; `name` is its stable key, e.g. `samples-nfe-004`."""

    name: str
    path: Path


class Table(NamedTuple):
    """Rows worth reading, all with the same keys; `name` is the table's stable key."""

    name: str
    rows: list[dict[str, object]]


class Tag(NamedTuple):
    """A short text that the run and its pipeline are found and compared by; `name` is its stable key."""

    name: str
    text: str


class Note(NamedTuple):
    """One line for the log."""

    text: str


class ModelReady(NamedTuple):
    """A finished model folder (safetensors + JSON) at `path`; `name` is `base`, a round or `student`."""

    name: str
    path: Path


Event = Progress | Metrics | Picture | Table | Tag | Note | ModelReady
Events = Iterator[Event]
