"""The processes that share a stage: the one that DVC started, which leads, and others that it forks.

    the stage, rank 0 --fork--> rank 1, rank 2, ...
        writes and tells            run the same stage, take their part of the work, say nothing

They meet by torch.distributed over the loopback: gloo for what lies on the host, NCCL between GPUs. The forks are
made before torch has started a thread or CUDA. They end with the process that leads, and if one of them ends early
the stage does, with a line. What they print goes to `work/crew/RANK.txt`.
"""

import _thread
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import torch
from torch import distributed

from flows.layout import WORK

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
GRACE_SECONDS = 1.0  # for the one that leads to notice by itself, since a broken connection is an error at once
STUCK_SECONDS = 20.0  # until it is ended where it cannot notice, as in a wait for a GPU
FOREVER = timedelta(days=30)  # another stage may be waited for; who is gone is noticed otherwise


class ProcessLost(RuntimeError):
    """One of the processes that share a stage ended before the stage did."""


class Crew:
    """The other processes of a stage, as a context of the one that leads; with a size of 1 there are none.

    Main arguments:
        size: how many processes share the stage.
        on_gpu: whether each has a GPU of its own.
        folder: of the project, for what the others print.
        follow: what the others run.
    """

    def __init__(self, size: int, *, on_gpu: bool, folder: Path, follow: Callable[[], object]) -> None:
        self.size, self.on_gpu, self.follow = size, on_gpu, follow
        self.told = folder / WORK / "crew"
        self.others: dict[int, int] = {}  # process by rank, of those that have not ended
        self.lost: str | None = None
        self.leaving, self.over = threading.Event(), threading.Event()
        self.watching: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if self.size == 1:
            return self
        self.told.mkdir(parents=True, exist_ok=True)
        self.meeting = Path(tempfile.mkdtemp(prefix="fmcore-crew-"))  # which only this user can enter
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(1, self.size):
            process = os.fork()
            if not process:
                self._become(rank, os.getppid())
            self.others[rank] = process
        for rank, process in self.others.items():
            self.watching.append(threading.Thread(target=self._watch, args=(rank, process), daemon=True))
        for thread in self.watching:
            thread.start()
        self._join(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size == 1:
            return
        self.leaving.set()
        if isinstance(error, RuntimeError):
            time.sleep(GRACE_SECONDS)  # a broken connection is noticed before the end of who broke it
        self.over.set()
        if error is not None:
            self._end()
        for thread in self.watching:
            thread.join(STUCK_SECONDS)
        self._end()
        shutil.rmtree(self.meeting, ignore_errors=True)
        if error is None:
            distributed.destroy_process_group()
        if self.lost is not None and isinstance(error, RuntimeError | KeyboardInterrupt):
            raise ProcessLost(self.lost) from None

    def _end(self) -> None:
        for process in list(self.others.values()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _watch(self, rank: int, process: int) -> None:
        """Waits for a process to end; if that is too early, ends the stage."""
        _, status = os.waitpid(process, 0)
        del self.others[rank]
        code = os.waitstatus_to_exitcode(status)
        if not code or self.over.is_set():
            return
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        path = self.told / f"{rank}.txt"
        words = path.read_text(errors="replace").split("\n")
        last = next((f": {line}" for line in reversed(words) if line), "")
        self.lost = self.lost or f"process {rank + 1} of {self.size} {how}{last} ({path})"
        if not self.leaving.wait(GRACE_SECONDS):
            _thread.interrupt_main()
        if not self.leaving.wait(STUCK_SECONDS):
            print(self.lost, file=sys.stderr, flush=True)
            os._exit(2)

    def _join(self, rank: int) -> None:
        """Meets the others."""
        for library in ("GLOO", "NCCL"):
            os.environ[f"{library}_SOCKET_IFNAME"] = LOOPBACK
        torch.set_num_threads(max(1, torch.get_num_threads() // self.size))
        if self.on_gpu:
            torch.cuda.set_device(rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if self.on_gpu else "gloo",
            init_method=f"file://{self.meeting}/store",
            rank=rank,
            world_size=self.size,
            timeout=FOREVER,
        )

    def _become(self, rank: int, leader: int) -> NoReturn:
        """In the fork: runs the stage and ends."""
        status = 1
        try:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the one that leads ends the others
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with (self.told / f"{rank}.txt").open("wb", buffering=0) as file:
                for handle in (1, 2):
                    os.dup2(file.fileno(), handle)
            self._join(rank)
            self.follow()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _end_with(leader: int) -> None:
    """Ends this process when the one that leads is gone, also where the system does not."""
    while os.getppid() == leader:
        time.sleep(1.0)
    os._exit(1)
