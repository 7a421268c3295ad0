"""Files that DVC does not write in one piece: `python -m flows.local.lockfile` mends what a kill has torn.

Killed while it writes dvc.lock, DVC leaves a part of it. It then refuses every later command, or takes a stage
whose digests are cut short for one that has changed, and runs it again. What the stages made is not lost: DVC
keeps each finished stage in its run cache before it writes the file. So the torn file is moved aside, and the next
`dvc repro` restores the stages without running them.

Killed while it writes .dvc/tmp/rwlock, its list of who reads and writes which file at the moment, DVC refuses
every command that runs a stage. The list holds nothing that outlives its processes, so a torn one is removed.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.local.process import dvc_in
from fmcore.flow.errors import one_line

LOCK_FILE = "dvc.lock"
CODE = ("flows/", "fmcore/")  # inputs that dvc.lock lists, and that the commit tells, too
WRITING_SECONDS = 1.0  # DVC takes a fifth of a second


def is_torn(root: Path) -> bool:
    """Whether the file ends in the middle of a line, as no whole one does, and nobody is writing it."""
    if not _is_cut(root):
        return False
    time.sleep(WRITING_SECONDS)
    return _is_cut(root)


def _is_cut(root: Path) -> bool:
    with suppress(OSError), (root / LOCK_FILE).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) != b"\n"
    return False


def mend(root: Path) -> str | None:
    """Mends what is torn or what DVC cannot read, and says so in a line; None if all is well."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        said = [line for line in (_mend_list(repo), _mend_lock(repo, root)) if line]
    return "; ".join(said) or None


def _mend_list(repo: Any) -> str | None:
    """Removes a torn list of readers and writers."""
    from dvc.exceptions import DvcException
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    if dvc_in(Path(repo.root_dir)):  # who is at work stands there
        return None
    path = Path(repo.tmp_dir or "") / RWLOCK_FILE
    hardlink = repo.config["core"].get("hardlink_lock", False)
    guard = make_lock(str(path.with_name(RWLOCK_LOCK)), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink)
    with suppress(DvcException, OSError), guard:  # held by whoever writes it
        try:
            json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink()
            return (
                f"a kill had torn {path.relative_to(repo.root_dir)}, DVC's list of who is at work; it is removed"
            )
    return None


def _mend_lock(repo: Any, root: Path) -> str | None:
    """Moves a dvc.lock aside that is torn or that DVC cannot read."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    with suppress(LockError), repo.lock:  # held by whoever writes the file
        path, reason = root / LOCK_FILE, ""
        try:
            Lockfile(repo, str(path)).load()
        except DvcException as error:
            reason = one_line(error)
        if _is_cut(root):
            reason = reason or "it ends in the middle of a line"
        if reason and path.exists():
            aside = _aside(path)
            path.replace(aside)
            what = f"{LOCK_FILE} cannot be used ({reason}); DVC restores what it held"
            return f"{what}. It is kept as {aside.name}; delete that when all is well"
    return None


def _aside(path: Path) -> Path:
    """A name that is not taken."""
    first = path.with_name(f"{path.name}.broken")
    return path.with_name(f"{path.name}.broken-{time.time():.0f}") if first.exists() else first


def main() -> int:
    """Mends the files of this checkout; returns 0 if there was something to mend."""
    from dvc.repo import Repo

    line = mend(Path(Repo.find_root()))
    if line:
        print(line, file=sys.stderr)
    return 0 if line else 1


if __name__ == "__main__":
    sys.exit(main())
