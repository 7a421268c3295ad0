"""params.yaml, read and checked: the only reader of it.

The file is read as DVC reads it (YAML 1.2) and validated strictly. Each mistake is reported in one line.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.params.messages import lines_of
from flows.params.schema import Params

FILE = Path("params.yaml")
MAX_BYTES = 64 * 1024


class ParamsError(ValueError):
    """params.yaml is wrong; one line for each mistake."""


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
    if lines := [f"{path}: {line}" for line in _odd_keys(value)]:
        raise ParamsError("\n".join(lines))
    return value


def _odd_keys(value: Any, at: str = "") -> Iterator[str]:
    """Keys that are no text, such as the 1 of `rounds: {1: ...}`, which DVC and JSON would take for another."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(value, dict) and not isinstance(key, str):
            yield f'{at or "params"}: expected keys that are texts, got {key}: write "{key}" in quotes'
        else:
            yield from _odd_keys(inner, f"{at}.{key}".lstrip("."))


def validate(raw: Mapping[str, Any], source: str) -> Params:
    """Checks a mapping against the schema and the rules that span sections."""
    from flows.params.rules import rules

    try:
        text = json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{source}: expected only numbers, strings, lists and mappings: {error}") from None
    try:
        # Only from JSON does pydantic's strict mode build dataclasses and tuples, and it still refuses "1" for 1.
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
