"""What a checkout holds: the commit, and what differs from it."""

import subprocess
from pathlib import Path
from typing import NamedTuple

SECONDS = 5.0
SHOWN = 5  # of the files that differ
WRITTEN = "dvc.lock"  # by DVC, after each stage


def identity(folder: Path) -> list[int]:
    """Tells a folder from a copy of it; one that is moved on its disk stays the same."""
    state = folder.stat()
    return [state.st_dev, state.st_ino]


class State(NamedTuple):
    """A commit, the branch, empty if there is none, and the tracked files that differ from the commit."""

    commit: str
    branch: str
    edited: tuple[str, ...]

    @property
    def dirty(self) -> str:
        """The files that differ, in words."""
        more = len(self.edited) - SHOWN
        return ", ".join(self.edited[:SHOWN]) + (f" and {more} more" if more > 0 else "") or "no"


def state_of(folder: Path) -> State | None:
    """The state of the repository that holds a folder, None where git cannot tell it."""
    asked = ("status", "--porcelain=v2", "--branch", "--untracked-files=no", "-z")
    command = ["git", "--no-optional-locks", *asked]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return parsed(done.stdout)


def parsed(text: str) -> State | None:
    """The state that `git status --porcelain=v2 --branch -z` tells, None before the first commit.

    >>> parsed("# branch.oid 1a2b\\0# branch.head main\\x001 .M N... 100644 100644 100644 ab ab params.yaml\\0")
    State(commit='1a2b', branch='main', edited=('params.yaml',))
    """
    about: dict[str, str] = {}
    edited = []
    parts = iter(text.split("\0"))
    for part in parts:
        match part[:2]:
            case "# ":
                _, key, value = part.split(" ", 2)
                about[key] = value
            case "1 ":
                edited.append(part.split(" ", 8)[8])
            case "2 ":
                edited.append(part.split(" ", 9)[9])
                next(parts, None)  # what it was called before
            case "u ":
                edited.append(part.split(" ", 10)[10])
    commit, branch = about.get("branch.oid", ""), about.get("branch.head", "")
    if commit in ("", "(initial)"):
        return None
    return State(commit, "" if branch == "(detached)" else branch, tuple(f for f in edited if f != WRITTEN))
