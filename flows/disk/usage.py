"""What takes room in a checkout, each file counted once: DVC's cache shares its files with the outs."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows import layout
from flows.disk.objects import cached_objects

_OUTS = ("DATASET", "FEATURES", "MODELS", "COUPLINGS", "CURVES", "SCORES", "REPORTS")
# In this order: a file with several names is counted where it comes first.
PLACES = {
    "outs": tuple(str(getattr(layout, name)) for name in _OUTS),
    "DVC's cache, besides": (".dvc/cache",),
    "experiments' copies": (".dvc/tmp", "work/experiments"),
    "journals": ("work/journal",),
    "Prefect": ("work/prefect*",),
    "unfinished work": ("work",),
    "MLflow": ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts"),
}


class Room(NamedTuple):
    """A row: what it is, where it lies, how many bytes of the disk it takes and how many files it has."""

    what: str
    where: str
    bytes: int
    files: int


def rooms(root: Path) -> list[Room]:
    """All rows, without empty ones."""
    seen: set[tuple[int, int]] = set()
    found = []
    for what, names in PLACES.items():
        for path in (path for name in names for path in sorted(root.glob(name))):
            size, count = _taken(path, seen)
            if count:
                found.append(Room(what, path.relative_to(root).as_posix(), size, count))
    return found


def _taken(path: Path, seen: set[tuple[int, int]]) -> tuple[int, int]:
    """Bytes of the disk, and files, at or below a path, but for those that were seen."""
    size = count = 0
    for file in files_of(path):
        state = file.lstat()
        if (state.st_dev, state.st_ino) not in seen:
            seen.add((state.st_dev, state.st_ino))
            size, count = size + state.st_blocks * 512, count + 1
    return size, count


def files_of(path: Path) -> Iterator[Path]:
    """The file itself, or those below a folder; what is gone meanwhile is left out."""
    if path.is_file() and not path.is_symlink():
        yield path
    for parent, _, names in os.walk(path):
        yield from (file for name in names if (file := Path(parent, name)).is_file() and not file.is_symlink())


def unused(root: Path) -> list[Path]:
    """The objects of DVC's cache that neither the workspace nor a branch, tag or experiment has."""
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of each out that a branch never made
    with Repo(str(root)) as repo, repo.lock:
        used = repo.used_objs(all_branches=True, all_tags=True, all_experiments=True)
    needed = {found.value for objects in used.values() for found in objects}
    return [path for digest, path in cached_objects(root) if digest not in needed]
