"""params.yaml, read and checked: the only reader of it.

Every field must stand in the file, and nothing else may: what a run did is what the file says. Sections that
configure the core are the core's own dataclasses, so each parameter is declared once. The file is read as
DVC reads it (YAML 1.2), validated strictly, and a mistake is one line: the key, what was expected, what came.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fmcore.data import DATA, Data
from fmcore.fields import Guidance
from fmcore.losses import DISTANCES, Distance, Matching
from fmcore.networks import NETWORKS, Network
from fmcore.paths import ContinuousPath
from fmcore.times import TIMES, FixedGrid, Grid, Times
from fmcore.training import TrainConfig

FILE = Path("params.yaml")
MAX_BYTES = 64 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
ALL_GRIDS = {kind.name: kind for kind in get_args(Grid)}
CONTINUOUS_PATHS = {kind.name: kind for kind in get_args(ContinuousPath)}
FAMILIES: tuple[Mapping[str, type], ...] = (DATA, NETWORKS, TIMES, DISTANCES, CONTINUOUS_PATHS, ALL_GRIDS)
Section = TypeVar("Section")


class ParamsError(ValueError):
    """params.yaml is wrong; one line for each mistake."""


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
    """The base flow; with a `teacher`, a diffusion model on disk, that one, and nothing is trained."""

    teacher: str | None
    path: ContinuousPath
    coupling: str
    label_dropout: float
    times: Times
    distance: Distance
    weighting: str
    train: TrainConfig


@dataclass(frozen=True)
class Couple:
    """How a teacher's couplings are made: `nfe` evaluations a pair, `batch` pairs together (auto: all that fit).

    `inverted` counts pairs of real data with the noise the teacher carries it to; `ema` is the half-life of the
    teacher's averaged weights, None for its first.
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


@dataclass(frozen=True)
class Round:
    """One reflow round: its teacher, and what differs from the `couple` and `reflow.train` sections."""

    teacher: str
    couple: dict[str, Any]
    train: dict[str, Any]


@dataclass(frozen=True)
class Mix:
    """The share of each batch that is inverted real data, until which share of the training, and how it changes.

    Its noise is turned towards fresh noise by up to `slerp` of the angle, and made anew with the model in training
    every `refresh_images`, 0 for never.
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
class Distill:
    """The k-step student: the model it starts from, the round whose couplings it learns, k.

    With `match` the end of its training draws its samples to the distribution of the data.
    """

    init: str
    couplings: str
    k: int
    match: Matching | None
    network: Network | None
    labels: Literal["keep", "drop"]
    drop_longest: float
    distance: Distance
    train: TrainConfig


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


class Params(BaseModel):
    """All of params.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "on", "off"]
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

    @property
    def models(self) -> list[str]:
        """Every model the pipeline makes, in order."""
        return ["base", *self.reflow.rounds, "student"]

    @property
    def is_points(self) -> bool:
        """Whether the data are points rather than images."""
        return len(self.data.shape) == 1


def _merged(kind: type[Section], section: Section, override: Mapping[str, Any]) -> Section:
    whole = TypeAdapter(kind)
    text = json.dumps({**whole.dump_python(section, mode="json"), **override})
    return whole.validate_json(text, strict=True)


def read(path: Path = FILE) -> Params:
    """Reads and checks a parameter file.

    Raises:
        ParamsError: one line for each mistake.
    """
    return validate(load_yaml(path), str(path))


def load_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping; a ParamsError if it is missing, too large, not YAML, or uses aliases."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ParamsError(f"{path}: {len(text)} bytes, expected at most {MAX_BYTES}")
    yaml = YAML(typ="safe", pure=True)
    try:
        # Aliases could unfold into more than memory holds; nothing here needs them.
        if any(event.anchor for event in yaml.parse(text) if hasattr(event, "anchor")):
            raise ParamsError(f"{path}: anchors and aliases are not supported")
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ParamsError(f"{path}: expected a mapping of sections, got {type(value).__name__}")
    return value


def validate(raw: Mapping[str, Any], source: str) -> Params:
    """Checks a mapping against the schema and the rules that span sections."""
    from flows.rules import rules

    try:
        text = json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{source}: expected only numbers, strings, lists and mappings: {error}") from None
    try:
        # JSON is where pydantic's strict mode builds dataclasses and tuples, yet never turns "1" into 1.
        params = Params.model_validate_json(text)
        problems = list(_missing(raw, params)) + list(rules(params))
    except ValidationError as error:
        problems = lines_of(error, raw)
    if problems:
        raise ParamsError("\n".join(f"{source}: {line}" for line in problems))
    return params


def _missing(raw: Any, value: Any, at: str = "") -> Iterator[str]:
    """Fields that have a default in the core but do not stand in the file."""
    if is_dataclass(value) and isinstance(raw, Mapping):
        for field in fields(value):
            key = f"{at}{field.name}"
            if field.name not in raw:
                default = getattr(value, field.name)
                yield f"{key}: missing; its usual value is {json.dumps(default)}"
            else:
                yield from _missing(raw[field.name], getattr(value, field.name), f"{key}.")
    elif isinstance(value, Params):
        for name in Params.model_fields:
            yield from _missing(raw[name], getattr(value, name), f"{name}.")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _missing(raw[name], item, f"{at}{name}.")


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # as pydantic calls a key that is none


def lines_of(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """pydantic's findings as `key: expected ..., got ...`, each mistake once."""
    classes = {kind.__name__: family for family in FAMILIES for kind in family.values()}
    lines: list[str] = []
    meant: set[str] = set()
    tried = {found["loc"][: i + 1] for found in error.errors() for i in range(len(found["loc"]))}
    for found in error.errors():
        loc = list(found["loc"])
        if re.fullmatch(r"int|literal\['auto'\]", str(loc[-1])):  # a number or auto: one line for both
            value = json.dumps(_at(raw, loc[:-1]))
            lines.append(f"{'.'.join(map(str, loc[:-1]))}: expected a whole number or auto, got {value}")
            continue
        union = next((i for i, part in enumerate(loc) if part in classes), None)
        if union is not None:
            # A choice by name: pydantic reports on every member of the union, the user chose one.
            family, chosen = classes[str(loc[union])], _at(raw, loc[:union])
            name = str(chosen.get("name")) if isinstance(chosen, Mapping) else f"no mapping with a name: {chosen}"
            offered = [n for n, kind in family.items() if (*loc[:union], kind.__name__) in tried]
            if name not in offered:
                key = ".".join([*map(str, loc[:union]), "name"])
                lines.append(f"{key}: expected one of {', '.join(offered)}, got {json.dumps(name)}")
                continue
            if family[name].__name__ != loc[union]:
                continue
            del loc[union]
        lines.append(_line(found, loc, raw))
        if found["type"] in UNKNOWN and (close := _close(loc)):
            meant.add(_line({"type": "missing"}, [*loc[:-1], close], raw))
    # A mistyped key is one mistake: that the right one is missing goes without saying.
    return [line for line in dict.fromkeys(lines) if line not in meant]


def _line(found: Any, loc: list[Any], raw: Mapping[str, Any]) -> str:
    key = ".".join(map(str, loc)) or "params"
    if found["type"] in UNKNOWN:
        close = _close(loc)
        return f"{key}: unknown key{f'; did you mean {close}?' if close else ''}"
    if found["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if found["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: expected {message}, got {json.dumps(_at(raw, loc))}"


def _at(raw: Any, loc: list[Any]) -> Any:
    for part in loc:
        raw = raw[part] if isinstance(raw, list) or (isinstance(raw, Mapping) and part in raw) else None
    return raw


def _close(loc: list[Any]) -> str | None:
    """The key that is most like this one, if any is."""
    known = {field.name for kind in _sections() for field in fields(kind)} | set(Params.model_fields)
    return next(iter(difflib.get_close_matches(str(loc[-1]), sorted(known), n=1)), None)


def _sections() -> list[type]:
    members = [kind for family in FAMILIES for kind in family.values()]
    return [
        *(Features, Base, Couple, Round, Mix, Reflow, Distill, Adaptive, Likelihood, Evaluate),
        *(TrainConfig, Guidance, Matching, *members),
    ]
