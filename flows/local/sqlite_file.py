"""MLflow's database as a file: how it keeps its writes, and where it says that a checkout's artifacts lie.

MLflow keeps an absolute address for the artifacts of each experiment, run and model, and makes a relative one
absolute (`resolve_uri_if_local`). `mlflow-artifacts:/`, which is relative to a server, cannot be written without
one. So in a checkout that was copied or moved the addresses lead to where it was, and what is logged in the copy
would change the original. They are therefore set right before the database is used.
"""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

ARTIFACTS = "mlartifacts"  # the folder of a checkout
# Columns that hold addresses of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
BUSY_SECONDS = 20.0  # as MLflow waits
# File systems of this machine's own disks. On others, as NFS, SQLite's log ahead of the writes loses data.
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay", "tmpfs", "apfs", "hfs"}


def settle(database: Path) -> None:
    """Makes a database's addresses of artifacts those of the checkout it lies in, and sets how it is written.

    Raises:
        sqlite3.Error: if it is locked, read only, or no database of MLflow's.
    """
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)) as base:
        _write_ahead(base, database)
        for old in _elsewhere(base, database.parent):
            _move(base, old, database.parent)


def _elsewhere(base: sqlite3.Connection, root: Path) -> list[Path]:
    """The checkouts whose artifacts the experiments name, other than this one."""
    if not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []
    named = base.execute("SELECT DISTINCT artifact_location FROM experiments WHERE name = 'fmcore'").fetchall()
    folders = [_path_of(address) for (address,) in named if address]
    return [folder.parent for folder in folders if folder.name == ARTIFACTS and folder.parent != root]


def _path_of(address: str) -> Path:
    """The path that a file's address, or a plain path, means; an empty one for any other address."""
    parts = urlsplit(address)
    if parts.scheme not in ("", "file"):
        return Path()
    return Path(url2pathname(parts.path) if parts.scheme else address)


def _move(base: sqlite3.Connection, old: Path, root: Path) -> None:
    """Lets every address below the old checkout lead to the same place in this one, or none."""
    base.execute("BEGIN IMMEDIATE")
    try:
        for table, column in ADDRESSES:
            for before, after in ((f"{old.as_uri()}/", f"{root.as_uri()}/"), (f"{old}/", f"{root}/")):
                base.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before), before),
                )
        base.execute("COMMIT")
    except sqlite3.Error:
        base.execute("ROLLBACK")
        raise


def _write_ahead(base: sqlite3.Connection, database: Path) -> None:
    """Lets readers and the writer not wait for each other, where the disk is this machine's own.

    The database remembers it. Where somebody is at it just now, it stays as it is until the next time.
    """
    wanted = "wal" if is_local(database) else "delete"
    (mode,) = base.execute("PRAGMA journal_mode").fetchone()
    if mode != wanted:
        with suppress(sqlite3.OperationalError):
            base.execute(f"PRAGMA journal_mode = {wanted}")


def is_local(path: Path) -> bool:
    """Whether a path lies on a disk of this machine; False where that is not known."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    place = path.resolve()
    return next((mounts[at] in LOCAL for at in (place, *place.parents) if at in mounts), False)
