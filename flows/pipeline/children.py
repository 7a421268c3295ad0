"""The `dvc` processes of one pipeline run: started, followed line by line, and ended with it.

Each runs in a process group of its own, which ends with the pipeline, however the pipeline ends: after a SIGKILL,
too, where the system can tie a process to another.
"""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from flows.local.process import stop, tied

TAIL_LINES = 40
EXITED = re.compile(r"failed to run: .*exited with (-?\d+)$")
DVC_SAYS = re.compile(r"ERROR: failed to reproduce|ERROR: .*failed to run|Running stage |> |\(where in the code: ")
HINTS = re.compile(r"To track the changes|\tgit add|To enable auto staging|\tdvc config core|Use `dvc push`")
INTERRUPTED = (130, 143)  # by whoever wants the stage to end


class StageFailed(RuntimeError):
    """A stage's command failed; the message is one line, which names the stage and says why.

    `killed` tells that its process was, so that another attempt may do, and goes on where it was.
    """

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class Stopped(RuntimeError):
    """The pipeline ended before the stage did, or before it could start."""


class Followed(NamedTuple):
    """What a process printed last; whether DVC ran the stage, restored its outputs from the cache, or neither."""

    tail: deque[str]
    did: Literal["ran", "restored", "nothing"]
    late: bool


def dvc() -> list[str]:
    """DVC's command, that of this interpreter."""
    return [str(Path(sys.executable).with_name("dvc"))]


def environment() -> dict[str, str]:
    """The variables that make `python` in a stage's command this interpreter, with unbuffered output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}


class Children:
    """The running `dvc` processes of one pipeline run; leaving the context ends them all."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def reproduce(
        self,
        root: Path,
        stage: str,
        *,
        force: bool,
        env: Mapping[str, str],
        log: Callable[[str], object],
        seconds: float | None = None,
    ) -> Literal["ran", "restored", "nothing"]:
        """Lets DVC reproduce `stage` alone, its lines going to `log`; tells what DVC did.

        Raises:
            StageFailed: if it cannot, or not within `seconds`.
            Stopped: if this was stopped.
        """
        command = [*tied(), *dvc(), "--wait-for-lock", "repro", "--single-item", *["--force"] * force, stage]
        with self._lock:  # between a check and a start, stop() could miss the process
            if self._stopped.is_set():
                raise Stopped(f"stage {stage!r} was not started")
            process = subprocess.Popen(
                command, cwd=root, env=os.environ | environment() | dict(env), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                start_new_session=True,
            )  # fmt: skip
            self._running.append(process)
        try:
            found = _follow(process, log, seconds)
            if found.late:
                stop([process])
        except BaseException:
            stop([process])
            raise
        finally:
            self._running.remove(process)
        if self._stopped.is_set():
            raise Stopped(f"stage {stage!r} was stopped; the same command goes on from there")
        if found.late:
            raise StageFailed(
                f"stage {stage!r} took longer than {seconds:.0f} s; a further run goes on from there"
            )
        if process.returncode:
            raise _failure(stage, process.returncode, found.tail)
        return found.did

    def stop(self) -> None:
        """Ends every running stage and starts no other."""
        with self._lock:
            self._stopped.set()
            running = list(self._running)
        stop(running)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _follow(process: subprocess.Popen[str], log: Callable[[str], object], seconds: float | None) -> Followed:
    """Logs the lines of `process` to its end; never in a blocking read, which nothing could interrupt."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    did: Literal["ran", "restored", "nothing"] = "nothing"
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        if deadline is not None and time.monotonic() > deadline:
            return Followed(tail, did, late=True)
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            # A grandchild that outlives `dvc` keeps the pipe open, so the pipe's end is not awaited.
            if process.poll() is not None:
                break
            continue
        if line is None:
            break
        if line and not HINTS.match(line):
            did = "ran" if line.startswith("Running stage ") else did
            did = "restored" if "is cached - skipping run" in line and did == "nothing" else did
            tail.append(line)
            log(line)
    process.wait()
    return Followed(tail, did, late=False)


def _failure(stage: str, status: int, tail: deque[str]) -> StageFailed:
    """Why a stage failed: what it says of itself, else the last that was said."""
    codes = [int(found[1]) for line in tail if (found := EXITED.search(line))]
    code = codes[-1] if codes else status
    own = [line.removeprefix(f"{stage}: ") for line in tail if line.startswith(f"{stage}: ")]
    others = [line for line in tail if line.strip() and not DVC_SAYS.match(line)]
    killed = (code < 0 or code > 128) and code not in INTERRUPTED and bool(codes)
    why = (own or others or [f"exit {code}"])[-1].strip()
    if killed and not own:
        why = f"its process was killed (exit {code})"
    return StageFailed(f"stage {stage!r} failed: {why}", killed=killed)


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip())
    lines.put(None)
