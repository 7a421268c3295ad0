"""params.yaml, read and checked: the only reader of it.

Every field must stand in the file, and nothing else may: what a run did is what the file says. Sections that
configure the core are the core's own dataclasses, so each parameter is declared once. The file is read as
DVC reads it (YAML 1.2), validated strictly, and a mistake is one line: the key, what was expected, what came.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fmcore.data import DATA, Data
from fmcore.features import FIT_DIMS, INCEPTION_DIMS
from fmcore.losses import DISTANCES, Distance
from fmcore.metrics import GROUPS
from fmcore.networks import MLP, NETWORKS, Network
from fmcore.paths import PATHS
from fmcore.solvers import SOLVERS, steps_for
from fmcore.times import TIMES, KGrid, Times
from fmcore.training import TrainConfig

FILE = Path("params.yaml")
MAX_BYTES = 64 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
FAMILIES: tuple[Mapping[str, type], ...] = (DATA, NETWORKS, TIMES, DISTANCES)


class ParamsError(ValueError):
    """params.yaml is wrong; one line for each mistake."""


@dataclass(frozen=True)
class Features:
    """What images are compared by; `weights` is the Inception file's path, else null."""

    extractor: Literal["classifier", "rotation", "inception", "none"]
    weights: str | None
    train: TrainConfig


@dataclass(frozen=True)
class Base:
    """The base flow."""

    path: str
    times: Times
    distance: Distance
    train: TrainConfig


@dataclass(frozen=True)
class Couple:
    """How a teacher's couplings are made: `nfe` evaluations a pair, `batch` pairs at a time."""

    pairs: int
    solver: str
    nfe: int
    batch: int
    dtype: Literal["float32", "float16"]


@dataclass(frozen=True)
class Round:
    """One reflow round: its teacher, and what differs from the `couple` and `reflow.train` sections."""

    teacher: str
    couple: dict[str, Any]
    train: dict[str, Any]


@dataclass(frozen=True)
class Reflow:
    """The reflow rounds, in order, and how each trains on its couplings."""

    times: Times
    distance: Distance
    train: TrainConfig
    rounds: dict[str, Round]


@dataclass(frozen=True)
class Distill:
    """The k-step student: the model it starts from, the round whose couplings it learns, k."""

    init: str
    couplings: str
    k: int
    distance: Distance
    train: TrainConfig


@dataclass(frozen=True)
class Adaptive:
    """Tolerances of the adaptive dopri5 solver."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class Evaluate:
    """What each model is scored on: samples, and the NFE of each fixed-step solver."""

    samples: int
    batch: int
    solvers: dict[str, tuple[int, ...]]
    dopri5: Adaptive | None


class Params(BaseModel):
    """All of params.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    conditional: bool
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
        return replace(self.couple, **self.reflow.rounds[name].couple)

    def train_of(self, name: str) -> TrainConfig:
        """How round `name` trains."""
        return replace(self.reflow.train, **self.reflow.rounds[name].train)

    @property
    def models(self) -> list[str]:
        """Every model the pipeline makes, in order."""
        return ["base", *self.reflow.rounds, "student"]

    @property
    def is_points(self) -> bool:
        """Whether the data are points rather than images."""
        return len(self.data.shape) == 1


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
    try:
        text = json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{source}: expected only numbers, strings, lists and mappings: {error}") from None
    try:
        # JSON is where pydantic's strict mode builds dataclasses and tuples, yet never turns "1" into 1.
        params = Params.model_validate_json(text)
        problems = list(_missing(raw, params)) + list(_rules(params))
    except ValidationError as error:
        problems = _lines(error, raw)
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


def _lines(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """pydantic's findings as `key: expected ..., got ...`, each mistake once."""
    classes = {kind.__name__: family for family in FAMILIES for kind in family.values()}
    lines: list[str] = []
    for found in error.errors():
        loc = list(found["loc"])
        union = next((i for i, part in enumerate(loc) if part in classes), None)
        if union is not None:
            # A choice by name: pydantic reports on every member of the union, the user chose one.
            family, chosen = classes[str(loc[union])], _at(raw, loc[:union])
            name = str(chosen.get("name")) if isinstance(chosen, Mapping) else "nothing"
            if name not in family:
                key = ".".join([*map(str, loc[:union]), "name"])
                lines.append(f"{key}: expected one of {', '.join(family)}, got {json.dumps(name)}")
                continue
            if family[name].__name__ != loc[union]:
                continue
            del loc[union]
        lines.append(_line(found, loc, raw))
    return list(dict.fromkeys(lines))


def _line(found: Any, loc: list[Any], raw: Mapping[str, Any]) -> str:
    key = ".".join(map(str, loc)) or "params"
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key{_hint(loc)}"
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


def _hint(loc: list[Any]) -> str:
    known = {field.name for kind in _sections() for field in fields(kind)} | set(Params.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _sections() -> list[type]:
    members = [kind for family in FAMILIES for kind in family.values()]
    return [Features, Base, Couple, Round, Reflow, Distill, Adaptive, Evaluate, TrainConfig, *members]


def _rules(params: Params) -> Iterator[str]:
    """What the types cannot say."""
    yield from _names(params)
    yield from _couple_rules(params.couple, "couple")
    yield from _override_rules(params)
    if params.base.path not in PATHS:
        yield f"base.path: expected one of {', '.join(PATHS)}, got {json.dumps(params.base.path)}"
    if not 0 <= params.seed < 2**63:
        yield f"seed: expected a number in [0, 2^63), got {params.seed}"
    for where, times in (("base.times", params.base.times), ("reflow.times", params.reflow.times)):
        if isinstance(times, KGrid):
            yield f"{where}.name: k_grid is for students; expected uniform, logit_normal or u_shaped"
    if params.distill.k < 1:
        yield f"distill.k: expected a number >= 1, got {params.distill.k}"
    yield from _evaluate_rules(params)
    yield from _data_rules(params)


def _names(params: Params) -> Iterator[str]:
    seen = ["base"]
    for name, round_ in params.reflow.rounds.items():
        key = f"reflow.rounds.{name}"
        if not NAME.fullmatch(name) or name in ("base", "student"):
            yield f"{key}: expected a name like r1 ({NAME.pattern}), not base or student, got {json.dumps(name)}"
        if round_.teacher not in seen:
            made = ", ".join(seen)
            yield f"{key}.teacher: expected a model made before it ({made}), got {json.dumps(round_.teacher)}"
        seen.append(name)
    if params.distill.init not in seen:
        yield f"distill.init: expected one of {', '.join(seen)}, got {json.dumps(params.distill.init)}"
    if params.distill.couplings not in params.reflow.rounds:
        rounds = ", ".join(params.reflow.rounds) or "there is none"
        yield f"distill.couplings: expected a round ({rounds}), got {json.dumps(params.distill.couplings)}"


def _couple_rules(couple: Couple, at: str) -> Iterator[str]:
    if couple.pairs < 1 or couple.batch < 1:
        yield f"{at}: expected pairs >= 1 and batch >= 1, got {couple.pairs} and {couple.batch}"
    yield from _solver_rules(couple.solver, (couple.nfe,), f"{at}.solver", f"{at}.nfe")


def _override_rules(params: Params) -> Iterator[str]:
    """A round's overrides must make whole sections: they are checked as such."""
    whole = params.model_dump(mode="json")
    for name, round_ in params.reflow.rounds.items():
        if not (round_.couple or round_.train):
            continue
        over = {
            "couple": {**whole["couple"], **round_.couple},
            "reflow": {**whole["reflow"], "train": {**whole["reflow"]["train"], **round_.train}, "rounds": {}},
        }
        try:
            merged = Params.model_validate_json(json.dumps({**whole, **over}))
        except ValidationError as error:
            for line in _lines(error, {**whole, **over}):
                yield f"reflow.rounds.{name}.{line.removeprefix('reflow.')}"
            continue
        yield from _couple_rules(merged.couple, f"reflow.rounds.{name}.couple")


def _solver_rules(name: str, nfes: tuple[int, ...], solver_key: str, nfe_key: str) -> Iterator[str]:
    if name not in SOLVERS:
        yield f"{solver_key}: expected one of {', '.join(SOLVERS)}, got {json.dumps(name)}"
        return
    for nfe in nfes:
        try:
            steps_for(SOLVERS[name], nfe)
        except ValueError:
            yield f"{nfe_key}: expected multiples of {SOLVERS[name].stages} for {name}, got {nfe}"


def _evaluate_rules(params: Params) -> Iterator[str]:
    evaluate = params.evaluate
    for name, nfes in evaluate.solvers.items():
        yield from _solver_rules(name, nfes, f"evaluate.solvers.{name}", f"evaluate.solvers.{name}")
    if not evaluate.solvers.get("euler"):
        yield "evaluate.solvers.euler: expected at least one NFE; straightness is measured on its finest grid"
    if evaluate.samples < 100 or evaluate.batch < 1:
        yield f"evaluate: expected samples >= 100 and batch >= 1, got {evaluate.samples} and {evaluate.batch}"
    for name, nfes in evaluate.solvers.items():
        if len(set(nfes)) < len(nfes):
            yield f"evaluate.solvers.{name}: expected each NFE once, got {list(nfes)}"
    dims = INCEPTION_DIMS if params.features.extractor == "inception" else FIT_DIMS
    if not params.is_points and evaluate.samples * (GROUPS - 1) <= dims * GROUPS:
        least = dims * GROUPS // (GROUPS - 1) + 1
        yield f"evaluate.samples: expected at least {least} for {dims} features, got {evaluate.samples}"
    if evaluate.dopri5 and min(asdict(evaluate.dopri5).values()) <= 0:
        yield f"evaluate.dopri5: expected rtol and atol > 0, got {json.dumps(asdict(evaluate.dopri5))}"


def _data_rules(params: Params) -> Iterator[str]:
    kind = params.features.extractor
    if params.is_points:
        if kind != "none":
            yield f'features.extractor: expected "none" for points ({params.data.name}), got {json.dumps(kind)}'
        if not isinstance(params.network, MLP):
            yield f"network.name: expected mlp for points ({params.data.name}), got {params.network.name}"
        if params.conditional:
            yield f"conditional: {params.data.name} has no classes, expected false"
    elif kind == "none":
        yield "features.extractor: none is for points; images need classifier, rotation or inception"
    if (kind == "inception") != (params.features.weights is not None):
        yield f"features.weights: expected a path for inception, else null, got {params.features.weights!r}"
