"""Parameter files as they lie on disk: read, laid over each other, written, compared.

Nothing here knows the schema, so this loads without torch.
"""

import io
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from fmcore.flow.errors import one_line

FILE = Path("params.yaml")
PRESETS = Path("presets")
DEFAULT = "digits"  # the preset that is whole; all others lie over it
MAX_BYTES = 64 * 1024
DEPTH = 20
LARGEST = 10**15
WIDTH = 115  # of the lines that are written
NAMES_OF_THE_USER = ("rounds", "students", "solvers")  # sections whose keys are names that the user gives


class ParamsError(ValueError):
    """params.yaml is wrong; one line for each mistake."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping; a ParamsError if it is missing, too large, not YAML, or uses aliases."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ParamsError(f"{path}: {len(text)} bytes, expected at most {MAX_BYTES}")
    try:
        if odd := _odd_event(text):
            raise ParamsError(f"{path}: {odd}")
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError) as error:
        raise ParamsError(f"{path}: not YAML: {one_line(error)}") from None
    except (ValueError, OverflowError) as error:  # of a value that looks like a date or a number
        if isinstance(error, ParamsError):
            raise
        raise ParamsError(f"{path}: a value cannot be read: {error}; write texts in quotes") from None
    if not isinstance(value, dict):
        raise ParamsError(f"{path}: expected a mapping of sections, got {type(value).__name__}")
    if lines := [f"{path}: {line}" for line in _odd_values(value)]:
        raise ParamsError("\n".join(lines))
    return value


def _odd_event(text: bytes) -> str | None:
    """What parameters need not, and could be made to fill memory or time with; the rest is then not read."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if getattr(event, "anchor", None):
            return "anchors and aliases are not supported"
        if getattr(event, "tag", None):
            return f"tags are not supported, got {event.tag}"
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEPTH:
            return f"expected sections nested at most {DEPTH} deep, got more in line {event.start_mark.line + 1}"
    return None


def _odd_values(value: Any, at: str = "") -> Iterator[str]:
    """Keys that are no text, such as the 1 of `rounds: {1: ...}`, and values that JSON lacks."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(value, dict) and not isinstance(key, str):
            yield f'{at or "params"}: expected keys that are texts, got {key}: write "{key}" in quotes'
        elif isinstance(key, str) and not key.isprintable():
            yield f"{at or 'params'}: expected keys that can be printed, got {json.dumps(key)}"
        else:
            yield from _odd_values(inner, f"{at}.{key}".lstrip("."))
    if isinstance(value, date):
        yield f"{at}: expected a text or a number, got the {type(value).__name__} {value}: write it in quotes"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        yield f"{at}: expected a text of whole characters, got {json.dumps(value)}"
    if isinstance(value, int) and abs(value) > LARGEST:
        yield f"{at}: expected a number up to {LARGEST:.0e}, got {value:.3g}"


def presets(folder: Path = Path()) -> list[str]:
    """The names of the presets below a folder, the whole one first."""
    names = (path.stem for path in (folder / PRESETS).glob("*.yaml"))
    return sorted(names, key=lambda name: (name != DEFAULT, name))


def with_preset(name: str, folder: Path = Path()) -> Any:
    """The defaults with preset `name` laid over them, comments kept.

    Raises:
        ParamsError: if one of the two files is wrong; it names the file.
    """
    usual, path = (folder / PRESETS / f"{of}.yaml" for of in (DEFAULT, name))
    load_yaml(usual)  # raises if it is not such YAML
    whole = YAML().load(usual)
    if name != DEFAULT:
        lay_over(whole, load_yaml(path), f"{path}: ")
    return whole


def dumped(whole: Any, width: int = WIDTH) -> bytes:
    """The text of a parameter file, with the comments that `whole` was loaded with."""
    yaml, text = YAML(), io.BytesIO()
    yaml.width = width
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(whole, text)
    return text.getvalue()


def lay_over(whole: Any, over: Mapping[str, Any], at: str = "") -> None:
    """Lays the keys of a preset over the whole defaults; an error names a key with `at` before it.

    A section that chooses by `name` is replaced when the name differs, since the keys belong to the choice; so are
    `rounds`, `students` and `solvers`, whose keys are names of the user's.

    Raises:
        ParamsError: if the defaults lack a key.
    """
    for key, value in over.items():
        if key not in whole:
            raise ParamsError(f"{at}{key}: not a key of {PRESETS}/{DEFAULT}.yaml")
        old = whole.get(key)
        same_choice = isinstance(value, dict) and isinstance(old, dict) and old.get("name") == value.get("name")
        if same_choice and key not in NAMES_OF_THE_USER:
            lay_over(old, value, f"{at}{key}.")
        else:
            whole[key] = value


def flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted name.

    >>> flattened({"train": {"seed": 0, "rates": [1, 2]}})
    {'train.seed': 0, 'train.rates': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Difference(NamedTuple):
    """The preset that parameters are nearest to, the keys that differ from it, and those that are gone."""

    preset: str
    keys: dict[str, Any]
    gone: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Each key in a word."""
        changed = [f"{key}={_short(value)}" for key, value in self.keys.items()]
        return changed + [f"no {key}" for key in self.gone]


def _short(value: Any) -> str:
    """A value in few characters, thousands as k.

    >>> _short(600000), _short([1, 2]), _short(5e-4)
    ('600k', '[1,2]', '0.0005')
    """
    if isinstance(value, int) and value >= 10_000 and value % 1000 == 0:
        return f"{value // 1000}k"
    return str(value).replace(", ", ",")


def nearest_preset(params: Mapping[str, Any], folder: Path = PRESETS) -> Difference | None:
    """What parameters differ in from the nearest preset of the same data, None where there is none."""
    try:
        default = load_yaml(folder / f"{DEFAULT}.yaml")
        found = []
        for path in sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != DEFAULT, path.stem)):
            over = load_yaml(path)
            if (over.get("data") or default["data"]).get("name") == params["data"]["name"]:
                whole = deepcopy(default)
                lay_over(whole, over)
                found.append(_difference(path.stem, flattened(whole), flattened(params)))
    except (ParamsError, KeyError, TypeError, AttributeError):  # presets are the user's to edit
        return None
    return min(found, key=lambda difference: len(difference.words), default=None)


def _difference(preset: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference:
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    return Difference(preset, changed, tuple(key for key in old if key not in new))
