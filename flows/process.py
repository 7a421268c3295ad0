"""Which process is which: a process for all time, and the run of the pipeline that one belongs to."""

import os
import re
from pathlib import Path
from typing import NamedTuple, Self

import psutil

PIPELINE = "FMCORE_PIPELINE"


class Process(NamedTuple):
    """A process for all time: a pid alone is used again."""

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


def pipeline_process() -> Process:
    """The process whose end is the end of the pipeline run."""
    given = re.fullmatch(r"(\d+)-(\d+(?:\.\d+)?)", os.environ.get(PIPELINE, ""))
    if given:
        return Process(int(given[1]), float(given[2]))
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


def redacted(text: str) -> str:
    """A text with its URLs bare of user, password and query."""
    return re.sub(r"://(?:[^/\s]*@)?([^\s?]*)(?:\?\S*)?", r"://\1", text)
