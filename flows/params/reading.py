"""params.yaml, read and checked: the only reader of it.

The file is read as DVC reads it (YAML 1.2) and validated strictly. Each mistake is reported in one line.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.params.files import FILE as FILE
from flows.params.files import ParamsError as ParamsError
from flows.params.files import load_yaml as load_yaml
from flows.params.messages import lines_of
from flows.params.schema import Params


def read(path: Path = FILE) -> Params:
    """Reads and checks a parameter file.

    Raises:
        ParamsError: one line for each mistake.
    """
    return validate(load_yaml(path), str(path))


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
