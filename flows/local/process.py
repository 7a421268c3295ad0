"""Processes: which is which, which run of the pipeline one belongs to, and how they are ended."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

import psutil

PIPELINE = "FMCORE_PIPELINE"
GRACE_SECONDS = 10.0


class Process(NamedTuple):
    """A process, named for good by pid and creation time: a pid alone is used again."""

    pid: int
    created: float

    @classmethod
    def of(cls, process: psutil.Process) -> Self:
        """The same process as psutil's; raises `psutil.NoSuchProcess` if it is gone."""
        return cls(process.pid, process.create_time())

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            # The kernel's start times are relative to a clock that may be set meanwhile.
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.created) < 2
        except psutil.Error:
            return False


def tied() -> list[str]:
    """What to put before a command, so that its process is asked to end when the one that started it is killed.

    Nothing where the system has no program for it: there such a process runs to its end.
    """
    program = shutil.which("setpriv") if sys.platform == "linux" else None
    return [program, "--pdeathsig", "TERM", "--"] if program else []


def pipeline_key() -> str:
    """Names the pipeline run this process belongs to; equal in all its stages.

    It is the environment's `FMCORE_PIPELINE`, else the `dvc` above this process, else this process. The
    key has the form `<pid>-<creation time>`, so a process that starts stages by itself can put its own
    `pipeline_key()` into their `FMCORE_PIPELINE`.
    """
    process = pipeline_process()
    return os.environ.get(PIPELINE) or f"{process.pid}-{process.created:.2f}"


def pipeline_started() -> float:
    """When the pipeline run began, in seconds since the epoch."""
    return pipeline_process().created


def process_named(key: str) -> Process | None:
    """The process that a pipeline's key is made of; None for another text."""
    found = re.fullmatch(r"(\d+)-(\d+(?:\.\d+)?)", key)
    return Process(int(found[1]), float(found[2])) if found else None


def pipeline_process() -> Process:
    """The process whose end is the end of the pipeline run."""
    if given := process_named(os.environ.get(PIPELINE, "")):
        return given
    mine = psutil.Process()
    leader = next((parent for parent in mine.parents() if _is_dvc(parent)), mine)
    return Process.of(leader)


def _is_dvc(process: psutil.Process) -> bool:
    """Whether a process is `dvc`, `python .../dvc` or `python -m dvc`."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    script = words[2:3] if words[1:2] == ["-m"] else words[1:2]
    return "dvc" in (Path(word).name for word in words[:1] + script)


def dvc_in(root: Path) -> list[int]:
    """The DVC commands of this user that are at work in a checkout, or in copies of it below."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            place = Path(process.cwd())
            if _is_dvc(process) and (place == root or root in place.parents):
                found.append(process.pid)
    return found


def redacted(text: str) -> str:
    """A text with its URLs bare of user, password and query."""
    return re.sub(r"://(?:[^/\s]*@)?([^\s?]*)(?:\?\S*)?", r"://\1", text)


def stop(processes: Iterable[subprocess.Popen[str]], grace: float = GRACE_SECONDS) -> None:
    """Ends `processes` with all they have started: asked first, killed after `grace` seconds."""
    started = list(processes)

    def members() -> dict[Process, psutil.Process]:
        for process in started:
            process.poll()  # reaps it
        return _identified(other for process in started for other in _group(process.pid))

    # A process group outlives its leader, and a child may have left the group: take both.
    below = _identified(other for process in started for other in _descendants(process.pid))
    _end(below | members(), members, grace)
    for process in started:
        process.wait()


def end_groups(leaders: Iterable[Process], grace: float = GRACE_SECONDS) -> int:
    """Ends what the leaders that still live have started, as `stop` does for children; returns how many."""
    alive = [leader.pid for leader in leaders if leader.alive()]
    doomed = _identified(other for pid in alive for other in (*_descendants(pid), *_group(pid)))
    _end(doomed, dict, grace)
    return len(doomed)


def _end(
    doomed: dict[Process, psutil.Process], more: Callable[[], dict[Process, psutil.Process]], grace: float
) -> None:
    """Asks all to end, then kills those that have not, and those that `more` has found meanwhile."""
    for other in doomed.values():
        _signal(other, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(known.alive() for known in doomed) and time.monotonic() < deadline:
        doomed = doomed | more()
        time.sleep(0.05)
    for other in doomed.values():
        _signal(other, signal.SIGKILL)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _group(leader: int) -> list[psutil.Process]:
    members = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == leader:
                members.append(psutil.Process(pid))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def _identified(processes: Iterable[psutil.Process]) -> dict[Process, psutil.Process]:
    known = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            known[Process.of(process)] = process
    return known


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # refuses a process id that was given to another process
    except psutil.NoSuchProcess:
        return
