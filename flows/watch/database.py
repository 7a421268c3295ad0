"""MLflow's database in this checkout: made whole or not at all.

MLflow makes its tables one after the other in place. Killed on the way it leaves a database that it refuses ever
after ("table jobs already exists"), so it is made under another name and takes its own when it is whole. This
takes seconds, so a copy is kept, empty as it is, for other checkouts.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import IO

from flows.local import private
from flows.local.sqlite_file import settle
from flows.local.tracking import NAME

BROKEN = re.compile(r"table \S+ already exists|no such (table|column)|malformed|not a database")
NEWER = re.compile(r"Can't locate revision")
LOCKED = re.compile(r"database is locked|attempt to write a readonly database|unable to open database")


def make(root: Path, env: Mapping[str, str], log: IO[str] | int = subprocess.DEVNULL) -> None:
    """Makes the database if there is none, the caller holding the postman's lock; else settles it here.

    Raises:
        OSError: if something else stands there.
        subprocess.CalledProcessError: if MLflow cannot.
    """
    database, work = root / NAME, root / "work"
    if database.exists() and not database.is_file():
        raise OSError(f"{NAME} is no file; expected MLflow's database: move it away")
    if database.exists() and database.stat().st_size:
        _settle(database)
        return
    work.mkdir(exist_ok=True)
    for left in work.glob(f".{NAME}.*"):  # of a maker that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(mkdtemp(prefix=f".{NAME}.", dir=work))
    part = folder / NAME
    if not _copied_to(part):
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{part}"]
        subprocess.run(
            command, cwd=root, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
        )
        _keep(part)
    _settle(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    for left in root.glob(f"{NAME}-*"):  # the log of one that was moved away, which SQLite would write into this
        left.unlink()
    part.replace(database)
    shutil.rmtree(folder)


def _settle(database: Path) -> None:
    """Settles one that is there; what MLflow cannot use it says itself, with its cure."""
    with suppress(sqlite3.Error):
        settle(database)


def _kept() -> Path:
    """Where an empty database of this version of MLflow is kept."""
    return private.caches() / f"mlflow-{version('mlflow')}.db"


def _copied_to(part: Path) -> bool:
    """Copies the one that is kept, if there is one that only this user can have written."""
    with suppress(OSError):
        kept = _kept()
        if private.is_private(kept):
            shutil.copyfile(kept, part)
            return True
    return False


def _keep(made: Path) -> None:
    """Keeps a new one, whole or not at all."""
    with suppress(OSError):
        kept = _kept()
        handle, part = mkstemp(prefix=".mlflow.", dir=kept.parent)  # with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(made.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, kept)
        finally:
            Path(part).unlink(missing_ok=True)


def cure(problem: str) -> str:
    """What helps against a problem of the database, as the end of a sentence; empty if that is not known."""
    if os.environ.get("MLFLOW_TRACKING_URI"):  # a store of the user's, of which nothing is known here
        return ""
    if NEWER.search(problem):
        return "; a newer MLflow made it: install that one"
    if BROKEN.search(problem):
        return f"; it is broken, and they go into a new one after: mv {NAME} {NAME}.broken"
    if LOCKED.search(problem):
        return f"; end the process that holds it (fuser {NAME}), or let this user write it"
    return ""
