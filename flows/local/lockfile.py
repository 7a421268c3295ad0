"""dvc.lock, which DVC does not write in one piece: `python -m flows.local.lockfile` mends what a kill has torn.

Killed while it writes the file, DVC leaves a part of it. It then refuses every later command, or takes a stage
whose digests are cut short for one that has changed, and runs it again. What the stages made is not lost: DVC
keeps each finished stage in its run cache before it writes the file. So the torn file is moved aside, and the next
`dvc repro` restores the stages without running them.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

LOCK_FILE = "dvc.lock"


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
    """Moves a dvc.lock that is torn or that DVC cannot read aside, and says so in a line; None if it is well."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    with suppress(LockError), Repo(str(root)) as repo, repo.lock:  # held by whoever writes the file
        path, reason = root / LOCK_FILE, ""
        try:
            Lockfile(repo, str(path)).load()
        except DvcException as error:
            reason = " ".join(str(error).split())
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
    """Mends the file of this checkout; returns 0 if there was something to mend."""
    from dvc.repo import Repo

    line = mend(Path(Repo.find_root()))
    if line:
        print(line, file=sys.stderr)
    return 0 if line else 1


if __name__ == "__main__":
    sys.exit(main())
