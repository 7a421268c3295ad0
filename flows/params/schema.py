"""What params.yaml may hold: its sections, as frozen dataclasses.

Sections that configure the core are the core's own dataclasses, so each parameter is declared once. Every field
must stand in the file, and nothing else may: what a run did is what the file says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter

from flows.params.files import lay_over
from fmcore.endings import ENDINGS, Ending
from fmcore.endings.spaces import SPACES
from fmcore.flow.fields import Guidance
from fmcore.flow.losses import DISTANCES, Distance
from fmcore.flow.paths import CONTINUOUS_PATHS, ContinuousPath
from fmcore.flow.times import TIMES, FixedGrid, Grid, Times
from fmcore.flow.training import TrainConfig
from fmcore.intake.sets import DATA, Data, are_images, sample_shape
from fmcore.models.networks import NETWORKS, Network
from fmcore.ode.sampling import Sampling

ALL_GRIDS = {kind.name: kind for kind in get_args(Grid)}
FAMILIES: tuple[Mapping[str, type], ...] = (
    DATA,
    NETWORKS,
    TIMES,
    DISTANCES,
    CONTINUOUS_PATHS,
    ALL_GRIDS,
    ENDINGS,
    SPACES,
)
Section = TypeVar("Section")


@dataclass(frozen=True)
class Features:
    """What images are compared by: an extractor's name, or MODULE:FUNCTION of the user's own.

    `weights` is the path of Inception's file, null for torch's usual cache; `download` lets it be fetched there.
    """

    extractor: str
    weights: str | None
    download: bool
    train: TrainConfig


@dataclass(frozen=True)
class Base:
    """The base flow. A `teacher`, the folder of a diffusion model, takes its place, and nothing is trained."""

    teacher: str | None
    path: ContinuousPath
    predicts: Literal["velocity", "noise", "data", "v"]
    coupling: str
    label_dropout: float
    times: Times
    distance: Distance
    weighting: str
    train: TrainConfig


@dataclass(frozen=True)
class Couple:
    """How a teacher's couplings are made: `nfe` evaluations a pair, `batch` pairs together (auto: all that fit).

    `inverted` is the number of pairs of real data with the noise that the teacher carries them to. `ema` is the
    half-life of the teacher's averaged weights, None for its first.
    """

    pairs: int
    inverted: int
    solver: str
    grid: Grid
    nfe: int
    guidance: Guidance | None
    ema: float | None
    batch: int | Literal["auto"]
    dtype: Literal["float32", "float16", "uint8"]

    @property
    def sampling(self) -> Sampling:
        """How a pair's sample is made of its noise."""
        return Sampling(self.solver, self.grid, self.nfe, self.guidance)


@dataclass(frozen=True)
class Round:
    """One reflow round: its teacher, and what differs from the `couple` and `reflow.train` sections."""

    teacher: str
    couple: dict[str, Any]
    train: dict[str, Any]


@dataclass(frozen=True)
class Mix:
    """How inverted real data is mixed into reflow: its share of each batch, and until which share of the training.

    Its noise is turned towards fresh noise by up to the share `slerp` of a right angle. Every `refresh_images`
    images (0: never) the model in training makes the noise anew.
    """

    inverted: float
    until: float
    slerp: float
    refresh_images: int


@dataclass(frozen=True)
class Reflow:
    """The reflow rounds, in order, and how each trains on its couplings."""

    network: Network | None
    labels: Literal["keep", "drop"]
    drop_longest: float
    mix: Mix
    times: Times
    distance: Distance
    weighting: str
    train: TrainConfig
    rounds: dict[str, Round]


@dataclass(frozen=True)
class Student:
    """One student: the model it starts from, the round whose couplings it learns, what differs from `distill`."""

    init: str
    couplings: str
    differs: dict[str, Any]


@dataclass(frozen=True)
class Distill:
    """The few-step students, in order, and how each is trained."""

    ending: Ending
    network: Network | None
    labels: Literal["keep", "drop"]
    drop_longest: float
    train: TrainConfig
    students: dict[str, Student]


@dataclass(frozen=True)
class Adaptive:
    """Tolerances of the adaptive dopri5 solver."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of real samples: `nfe` evaluations each, `probes` for the trace, 0 for the exact one."""

    samples: int
    solver: str
    nfe: int
    probes: int


@dataclass(frozen=True)
class Evaluate:
    """What each model is scored on: samples, and the NFE of each fixed-step solver, on each of the grids.

    `repeats` is the number of disjoint ranges of noise, each of `samples`.
    """

    samples: int
    repeats: int
    batch: int
    grids: tuple[FixedGrid, ...]
    solvers: dict[str, tuple[int, ...]]
    dopri5: Adaptive | None
    metrics: tuple[str, ...]
    likelihood: Likelihood | None


@dataclass(frozen=True)
class Launch:
    """How many processes share a stage that trains, samples or scores: `auto` is one for each GPU.

    It decides no result but for the last bits, so no stage depends on it.
    """

    processes: int | Literal["auto"]


class Params(BaseModel):
    """All of params.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "on", "off"]
    launch: Launch
    conditional: bool
    flip: bool
    data: Data
    features: Features
    network: Network
    base: Base
    couple: Couple
    reflow: Reflow
    distill: Distill
    evaluate: Evaluate

    def couple_of(self, name: str) -> Couple:
        """How round `name` makes its couplings."""
        return _merged(Couple, self.couple, self.reflow.rounds[name].couple)

    def train_of(self, name: str) -> TrainConfig:
        """How round `name` trains."""
        return _merged(TrainConfig, self.reflow.train, self.reflow.rounds[name].train)

    def distill_of(self, name: str) -> Distill:
        """How student `name` is trained; without the students."""
        return TypeAdapter(Distill).validate_json(json.dumps(self.raw_distill_of(name)), strict=True)

    def raw_distill_of(self, name: str) -> dict[str, Any]:
        """`distill_of`, not yet checked; a ParamsError for an unknown key."""
        section: dict[str, Any] = TypeAdapter(Distill).dump_python(self.distill, mode="json") | {"students": {}}
        lay_over(section, self.distill.students[name].differs, f"distill.students.{name}.differs.")
        return section

    @property
    def students(self) -> list[str]:
        """The students, in order."""
        return list(self.distill.students)

    @property
    def models(self) -> list[str]:
        """Every model the pipeline makes, in order."""
        return ["base", *self.reflow.rounds, *self.distill.students]

    @property
    def is_points(self) -> bool:
        """Whether the data are compared as points, as all but images are."""
        return not are_images(self.data)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of what is compared, which is not what is trained on where that is latents."""
        return sample_shape(self.data)


def _merged(kind: type[Section], section: Section, override: Mapping[str, Any]) -> Section:
    whole = TypeAdapter(kind)
    text = json.dumps({**whole.dump_python(section, mode="json"), **override})
    return whole.validate_json(text, strict=True)


def sections() -> list[type]:
    """The dataclasses of all sections that params.yaml may hold."""
    members = [kind for family in FAMILIES for kind in family.values()]
    return [
        *(Features, Base, Couple, Round, Mix, Reflow, Student, Distill, Adaptive, Likelihood, Evaluate, Launch),
        *(TrainConfig, Guidance, *members),
    ]
