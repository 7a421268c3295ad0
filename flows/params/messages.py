"""pydantic's findings in one line each: the key, what was expected, what came."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from flows.params.schema import FAMILIES, Params, sections

PAIR = "tuple[int, int]"  # pydantic's name of [height, width]
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's error types for an unknown key


def lines_of(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """pydantic's findings as `key: expected ..., got ...`, each mistake once."""
    classes = {kind.__name__: family for family in FAMILIES for kind in family.values()}
    lines: list[str] = []
    meant: set[str] = set()
    tried = {found["loc"][: i + 1] for found in error.errors() for i in range(len(found["loc"]))}
    for found in error.errors():
        loc, line = _resolved(found["loc"], raw, classes, tried)
        if line is not None:
            lines.append(line)
        if loc is None:
            continue
        lines.append(_line(found, loc, raw))
        if found["type"] in UNKNOWN and (close := _close(loc)):
            meant.add(_line({"type": "missing"}, [*loc[:-1], close], raw))
    # A mistyped key is one mistake, so the line that says the right key is missing goes.
    return [line for line in dict.fromkeys(lines) if line not in meant]


def _resolved(
    loc: tuple[Any, ...], raw: Mapping[str, Any], classes: Mapping[str, Mapping[str, type]], tried: set[Any]
) -> tuple[list[Any] | None, str | None]:
    """(place in the file, None) of one of pydantic's findings, (None, line) if worded, (None, None) if skipped.

    pydantic tries each member of a union and names it in the place. Only the member that the user named counts.
    """
    plain: list[Any] = []
    for i, part in enumerate(loc):
        if part in classes:
            family, chosen = classes[part], _at(raw, plain)
            name = str(chosen.get("name")) if isinstance(chosen, Mapping) else f"no mapping with a name: {chosen}"
            offered = [n for n, kind in family.items() if (*loc[:i], kind.__name__) in tried]
            if name not in offered:
                key = ".".join(map(str, [*plain, "name"]))
                return None, f"{key}: expected one of {', '.join(offered)}, got {json.dumps(name)}"
            if family[name].__name__ != part:
                return None, None
        elif re.fullmatch(r"int|literal\['auto'\]|tuple\[.*", str(part)):  # one type or another: one line for both
            members = [str(other[-1]) for other in tried if len(other) == i + 1 and other[:-1] == loc[:i]]
            if i == len(loc) - 1 or PAIR in members:
                value, key = _at(raw, plain), ".".join(map(str, plain))
                many = any(member.startswith("tuple[") for member in members)
                if isinstance(value, list) and many and PAIR not in members:
                    return None, None
                kinds = {
                    "a whole number": "int" in members,
                    "a list of two": PAIR in members,
                    "a list": many and PAIR not in members,
                    "auto": "literal['auto']" in members,
                }
                wanted = " or ".join(kind for kind, is_offered in kinds.items() if is_offered)
                return None, f"{key}: expected {wanted}, got {json.dumps(value)}"
        else:
            plain.append(part)
    return plain, None


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
    """The known key that is most like this one, if any is."""
    known = {field.name for kind in sections() for field in fields(kind)} | set(Params.model_fields)
    return next(iter(difflib.get_close_matches(str(loc[-1]), sorted(known), n=1)), None)
