"""Parameters that differ from those of the file: a preset, some fields, and keys given one by one.

    base --preset--> --rounds, nfe, seed--> --overrides--> checked as params.yaml is

What a form or a schedule gives comes here before anything starts, so a mistake costs one line and no time.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.params.files import MAX_BYTES, ParamsError, dumped, presets, with_preset
from fmcore.flow.errors import one_line

KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
SOURCE = "overrides"  # whose mistakes the lines of the check are
MOST_KEYS = 200


class Variation(NamedTuple):
    """What is to differ; None and nothing leave the parameters as they are.

    `rounds` is the number of reflow rounds: those there are, cut off or followed by others, each taught by the one
    before. `nfe` are the evaluations at which models are scored by Euler. `overrides` are values by dotted key.
    """

    preset: str | None = None
    rounds: int | None = None
    nfe: tuple[int, ...] | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        return self != Variation()

    @property
    def words(self) -> list[str]:
        """Each difference in a word."""
        fields = {
            "preset": self.preset,
            "rounds": self.rounds,
            "nfe": self.nfe and list(self.nfe),
            "seed": self.seed,
        }
        given = {key: value for key, value in fields.items() if value is not None} | dict(self.overrides)
        return [f"{key}={str(value).replace(', ', ',')}" for key, value in given.items()]


def parsed(overrides: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Values by dotted key, given as a mapping or as lines `KEY=VALUE`, a value being written as in params.yaml.

    >>> parsed(["couple.nfe=8", "reflow.rounds.r1.train = {lr: 0.001}"])
    {'couple.nfe': 8, 'reflow.rounds.r1.train': {'lr': 0.001}}

    Raises:
        ParamsError: one line for each that is neither.
    """
    if not isinstance(overrides, Mapping):
        found: dict[str, Any] = {}
        for line in overrides or ():
            key, equals, value = line.partition("=")
            if not equals:
                raise ParamsError(f"{SOURCE}: expected KEY=VALUE, got {_shown(line)}")
            found[key.strip()] = _value(key.strip(), value)
        overrides = found
    if len(overrides) > MOST_KEYS:
        raise ParamsError(f"{SOURCE}: expected at most {MOST_KEYS} keys, got {len(overrides)}")
    for key in overrides:
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise ParamsError(f"{SOURCE}: expected a dotted key such as couple.nfe, got {_shown(key)}")
    return dict(overrides)


def varied(folder: Path, text: bytes, variation: Variation) -> bytes:
    """A parameter file that differs from `text` as it should, comments kept and checked.

    `folder` holds the presets.

    Raises:
        ParamsError: one line for each mistake.
    """
    from flows.params.reading import validate  # the schema loads torch

    whole = _base(folder, text, variation.preset)
    if variation.rounds is not None:
        _set_rounds(whole, variation.rounds)
    if variation.nfe is not None:
        _set(whole, "evaluate.solvers.euler", list(variation.nfe))
    if variation.seed is not None:
        _set(whole, "seed", variation.seed)
    for key, value in variation.overrides.items():
        _set(whole, key, value)
    made = dumped(whole)
    if len(made) > MAX_BYTES:
        raise ParamsError(f"{SOURCE}: params.yaml would have {len(made)} bytes, expected at most {MAX_BYTES}")
    validate(YAML(typ="safe", pure=True).load(made), SOURCE)
    return made


def _base(folder: Path, text: bytes, preset: str | None) -> Any:
    if preset is None:
        try:
            return YAML().load(text)
        except YAMLError as error:
            raise ParamsError(f"params.yaml: not YAML: {one_line(error)}") from None
    if preset not in (known := presets(folder)):  # so that no name leads elsewhere
        raise ParamsError(f"preset: expected one of {', '.join(known)}, got {_shown(preset)}")
    return with_preset(preset, folder)


def _set_rounds(whole: Any, count: int) -> None:
    """Keeps the first `count` rounds, or adds some, each taught by the one before."""
    known = (whole.get("reflow") or {}).get("rounds") or {}
    kept = dict(list(known.items())[:count])
    while len(kept) < count:
        name = next(f"r{number}" for number in range(1, count + len(known) + 2) if f"r{number}" not in kept)
        kept[name] = {"teacher": list(kept)[-1] if kept else "base", "couple": {}, "train": {}}
    _set(whole, "reflow.rounds", kept)


def _set(whole: Any, path: str, value: Any) -> None:
    """Sets a value; what no section has, or has in another form, the check tells."""
    *parents, last = path.split(".")
    at = whole
    for i, part in enumerate(parents):
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if not isinstance(at, Mapping):
            raise ParamsError(
                f"{SOURCE}: {path}: {'.'.join(parents[: i + 1])} is no section; give its whole value"
            )
    at[last] = value


def _value(key: str, text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    try:
        if any(getattr(event, "anchor", None) for event in yaml.parse(text)):
            raise ParamsError(f"{SOURCE}: {key}: anchors and aliases are not supported")
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{SOURCE}: {key}: not YAML: {one_line(error)}") from None


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
