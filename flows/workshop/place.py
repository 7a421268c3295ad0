"""Where the project lies, and the files that params.yaml names in it."""

import os
from collections.abc import Iterator, Mapping
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
    for path in {*_named(params), *_beside(params.get("data"))}:
        here, there = Path(path), root() / path
        if not here.is_absolute() and not here.exists() and there.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)


def _beside(data: object) -> Iterator[str]:
    """Files beside the data, where a name may also be that of a column."""
    if isinstance(data, Mapping):
        named = [data[key] for key in BESIDE if isinstance(data.get(key), str)]
        yield from (name for name in named if (root() / name).is_file())  # a column may be called `dataset`
        yield from _beside(data.get("images"))  # which latents are of


def _named(params: Mapping[str, Any]) -> Iterator[str]:
    for key, value in params.items():
        if isinstance(value, Mapping) and key != "rounds":  # whose teachers are models of the pipeline
            yield from _named(value)
        elif key in PATHS and isinstance(value, str):
            yield value
