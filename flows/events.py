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

    `of` is what the work is done on, e.g. a model. Work of another title may come between: it interrupts this one.
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
    """Numbers at one `step` (images seen for training curves, NFE for scores, 0 for single values).

    A name begins with the section it is shown in, as in "training/loss". `of` is the model the numbers are about,
    empty for the one that the stage is about.
    """

    step: int
    values: dict[str, float]
    of: str = ""


class Picture(NamedTuple):
    """A PNG file worth looking at; `name` is its stable key, e.g. `samples-nfe-004`.

    `beside` names those of other models that it is shown beside; `of` is the model it is about, empty for the one
    that the stage is about.
    """

    name: str
    path: Path
    beside: str = ""
    of: str = ""


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
    """A finished model folder (safetensors + JSON) at `path`; `name` is `base`, a round or a student."""

    name: str
    path: Path


class Rated(NamedTuple):
    """What a model is chosen by: `scores` within so many evaluations, each with how the samples were made.

    `sha256` is that of its weights. Scores of two models compare if their `yardstick` is the same text. `samples`
    is a PNG file of some.
    """

    name: str
    sha256: str
    yardstick: str
    scores: dict[int, tuple[float, str]]
    samples: Path


# Numbers that a flow has one of; all other scores are one for each way of sampling.
ONE_A_MODEL = frozenset(
    {
        *("straightness", "transport_cost", "reconstruction_real", "reconstruction_generated"),
        *("memorisation", "bits_per_dim", "nats"),
    }
)


def scored(metric: str, value: float, *, nfe: int, solver: str, grid: str = "", of: str = "") -> Metrics:
    """A score. What Euler reaches is `quality/METRIC`, what other solvers do `solvers/METRIC.SOLVER`.

    Main arguments:
        grid: its name, empty for the first that the model was sampled on.
    """
    if metric in ONE_A_MODEL:
        return Metrics(0, {f"flow/{metric}": value}, of)
    if solver == "euler" and not grid:
        return Metrics(nfe, {f"quality/{metric}": value}, of)
    return Metrics(nfe, {f"solvers/{metric}.{'.'.join(filter(None, (solver, grid)))}": value}, of)


def trained(images: int, loss: float, grad_norm: float, lr: float, of: str = "") -> Metrics:
    """A point of a training curve."""
    return Metrics(images, {"training/loss": loss, "training/grad_norm": grad_norm, "training/lr": lr}, of)


def samples_at(nfe: int, path: Path, of: str = "") -> Picture:
    """Samples of a model by so many Euler steps."""
    return Picture(f"samples-nfe-{nfe:04d}", path, f"samples/{nfe} NFE", of)


Event = Progress | Metrics | Picture | Table | Tag | Note | ModelReady | Rated
Events = Iterator[Event]
