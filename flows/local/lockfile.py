"""dvc.lock, which DVC does not write in one piece: `python -m flows.local.lockfile` mends what a kill has torn.

Killed while it writes the file, DVC leaves a part of it, and refuses every later command. What the stages made
is not lost: DVC keeps each finished stage in its run cache before it writes the file. So the torn file is moved
aside, and the next `dvc repro` restores the stages without running them.
"""

import sys
from contextlib import suppress
from pathlib import Path

from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

BROKEN = f"{LOCK_FILE}.broken"


def mend(root: Path) -> str | None:
    """Moves a dvc.lock that DVC cannot read aside, and returns a line that says so; None if it is well."""
    with suppress(LockError), Repo(str(root)) as repo, repo.lock:  # which whoever writes the file holds
        path = root / LOCK_FILE
        try:
            Lockfile(repo, str(path)).load()
        except DvcException as error:
            reason = " ".join(str(error).split())
            path.replace(root / BROKEN)
            return f"{LOCK_FILE} cannot be read ({reason}); it is kept as {BROKEN}, DVC restores what it held"
    return None


def main() -> int:
    """Mends the file of this checkout; returns 0 if there was something to mend."""
    line = mend(Path(Repo.find_root()))
    if line:
        print(line, file=sys.stderr)
    return 0 if line else 1


if __name__ == "__main__":
    sys.exit(main())
