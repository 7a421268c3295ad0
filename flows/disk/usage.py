"""What takes room in a checkout, each file counted once: DVC's cache shares its files with the outs."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows import layout
from flows.local.checkout import state_of
from flows.local.lockfile import LOCK_FILE, is_torn
from flows.local.objects import cache_of, objects
from flows.local.process import dvc_in
from flows.where.checkout import locked
from fmcore.flow.errors import one_line

OUTS = (
    layout.DATASET,
    layout.FEATURES,
    layout.MODELS,
    layout.COUPLINGS,
    layout.CURVES,
    layout.SCORES,
    layout.REPORTS,
)
# In this order: a file with several names is counted where it comes first.
PLACES = {
    "outs": tuple(map(str, OUTS)),
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


class NotKnownError(ValueError):
    """Nobody here can tell what of the cache is needed."""


def unused(root: Path) -> list[Path]:
    """The objects of the cache that neither the workspace has nor the newest commit of a branch or experiment.

    Raises:
        NotKnownError: if others may use the cache, if DVC is at work, or if it cannot tell what the outs are.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if busy := dvc_in(root):  # what an experiment makes has no name yet
        raise NotKnownError(f"DVC is at work here (process {busy[0]}); prune when it has ended")
    if not state_of(root):
        raise NotKnownError("this is no git repository, so nothing tells which branches and experiments there are")
    path = root / LOCK_FILE
    if not path.is_file() or not locked(path.read_text(errors="replace")) or is_torn(root):
        raise NotKnownError(
            f"{LOCK_FILE} is missing or torn, so nothing tells what the outs are: make repro mends it"
        )
    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of each out that a branch never made
    try:
        cache = cache_of(root).resolve()
        with Repo(str(root)) as repo, repo.lock:
            used = repo.used_objs(all_branches=True, all_tags=True, all_experiments=True)
    except (DvcException, OSError, ValueError) as error:
        raise NotKnownError(f"DVC cannot tell what its cache holds: {one_line(error)}") from None
    if root.resolve() not in cache.parents:
        raise NotKnownError(f"DVC's cache lies in {cache}, which others may use: prune it with dvc gc --projects")
    needed = {found.value for found_in in used.values() for found in found_in}
    return [path for digest, path in objects(cache) if digest not in needed]
