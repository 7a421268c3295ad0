"""Where the project lies, and the files that params.yaml names in it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PATHS = (
    "root",
    "weights",
    "backbone",
    "linear",
    "teacher",
    "autoencoder",
)  # keys that name files or folders
BESIDE = ("labels", "group")  # of `data`, that may


def root() -> Path:
    """The repository's root, also in DVC experiments, which run in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def bring(params: Mapping[str, Any]) -> None:
    """Links what params.yaml names into a copy of the repository, which lacks what git ignores."""
    for path in {path for _, path in [*_named(params), *_beside(params.get("data"))]}:
        here, there = Path(path), root() / path
        if not here.is_absolute() and not here.exists() and there.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)


def in_the_way(params: Mapping[str, Any], outs: Iterable[Path]) -> Iterator[str]:
    """A line for each path named by params.yaml that holds an output or lies in one, which DVC would delete."""
    places = [(out, _forms(root() / out)) for out in sorted(outs)]
    for key, name in [*_named(params), *_beside(params.get("data"), "data")]:
        forms = _forms(root() / name)
        for out, here in places:
            if any(place in (path, *path.parents) for place in here for path in forms):
                yield f"{key}: expected a place apart from {out}, which DVC removes before its stage, got {name!r}"
            elif any(path in place.parents for place in here for path in forms):
                yield f"{key}: expected a place apart from what the stages make, got {name!r}, which holds {out}"
            else:
                continue
            break


def _forms(path: Path) -> set[Path]:
    """A path as it is written, and where it leads."""
    return {Path(os.path.normpath(path)), Path(os.path.realpath(path))}


def _beside(data: object, at: str = "data") -> Iterator[tuple[str, str]]:
    """Keys and names of files beside the data, where a name may also be that of a column."""
    if isinstance(data, Mapping):
        named = [(f"{at}.{key}", data[key]) for key in BESIDE if isinstance(data.get(key), str)]
        yield from ((key, name) for key, name in named if (root() / name).is_file())  # a column may be `dataset`
        yield from _beside(data.get("images"), f"{at}.images")  # which latents are of


def _named(params: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and key != "rounds":  # whose teachers are models of the pipeline
            yield from _named(value, f"{at}{key}.")
        elif key in PATHS and isinstance(value, str):
            yield f"{at}{key}", value
        elif key == "extractor" and isinstance(value, str) and ":" in value:  # MODULE:FUNCTION
            yield f"{at}{key}", f"{value.partition(':')[0].replace('.', '/')}.py"
