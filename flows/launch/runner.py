"""Runs the one stage that DVC names, and everything that watches it.

The stage yields events. Here they become progress on the terminal and lines of a journal, from which MLflow and
Prefect are told. None of these decides the outcome: a stage that finished its work ends with status 0.
"""

import os
import signal
import sys
import traceback
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from types import FrameType, TracebackType

from flows.events import Event, Metrics, Note
from flows.events import Progress as Done
from flows.launch import origin, timing
from flows.launch.about import REPORT, about
from flows.launch.crew import Crew, ProcessLost
from flows.launch.stages import stage_at, started
from flows.layout import WORK
from flows.local.lockfile import LOCK_FILE, is_torn
from flows.params.reading import FILE, ParamsError, load_yaml, read
from flows.params.schema import Params
from flows.watch.journal import open_journal
from flows.workshop.entry import entry_of
from flows.workshop.place import bring, root
from flows.workshop.workspace import BusyError, TakenOver
from fmcore.disk.files import ChangedError, DamagedError
from fmcore.flow.speed import is_out_of_memory, keep_freed_memory
from fmcore.progress import Progress

DAMAGED = (
    "(make verify names all that is damaged; python -m flows.disk.verify --mend removes it, from DVC's cache too, "
    "so that dvc repro makes it again. After an edit on purpose, remove SHA256SUMS beside it, then dvc commit.)"
)
SHARED = ("base", "couple", "reflow", "distill", "evaluate_base", "evaluate", "evaluate_student")
CHANGED = "(if it was changed on purpose: dvc repro -f -s check, then dvc repro)"


def run(stage: str) -> int:
    """Runs a stage; returns the exit status, 2 with one line for a user's mistake."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _run(stage)
    except KeyboardInterrupt:
        print(
            f"{stage}: interrupted; the same command goes on from its last checkpoint, shard or score",
            file=sys.stderr,
        )
        return 130
    except ParamsError as error:
        print(f"{stage}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ArithmeticError, BusyError, ProcessLost) as error:
        print(f"{stage}: {error}", file=sys.stderr)
        if isinstance(error, DamagedError):
            print(DAMAGED, file=sys.stderr)
        if isinstance(error, ChangedError):
            print(CHANGED, file=sys.stderr)
        trace = root() / WORK / "traceback.txt"
        with suppress(OSError):  # the disk may be what failed
            trace.parent.mkdir(exist_ok=True)
            trace.write_text(traceback.format_exc())
            print(f"(where in the code: {trace})", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        print(
            f"{stage}: out of memory; lower the batch or batch_size it uses, or raise train.accumulate",
            file=sys.stderr,
        )
        return 2
    return 0


def _run(stage: str) -> None:
    keep_freed_memory()
    # Later stages find here what earlier ones compiled.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root() / WORK / "inductor"))
    if is_torn(Path.cwd()):
        raise ValueError(
            f"a kill has torn {LOCK_FILE}, so DVC runs what is there already; "
            "mend it: python -m flows.local.lockfile"
        )
    params, before = read(), entry_of(stage, load_yaml(FILE))
    said = about(params, stage_at(stage), before, root())
    bring(said.params)
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(root(), stage=stage, place=Path.cwd(), **said._asdict()))
        bars = stack.enter_context(Bars())
        shared = _shared(params, stage, stack)
        try:
            for event in chain([shared] if shared else [], started(params, stage_at(stage))):
                for each in (event, *bars(event)):
                    journal(each)
        except TakenOver as taken:
            journal(Note(str(taken)))
            print(taken, file=sys.stderr, flush=True)
        # DVC reads the parameters now. If they were edited meanwhile, it would record that the new values made
        # these outputs, and never run the stage again.
        if entry_of(stage, load_yaml(FILE)).params != before.params:
            raise ValueError(
                f"params.yaml changed while {stage} ran, in keys it depends on; run the same command again"
            )
    with suppress(OSError):
        timing.record(root(), stage, bars.seconds)
    if stage == REPORT:
        with suppress(OSError):
            origin.note(root(), said.tags)


def _shared(params: Params, stage: str, stack: ExitStack) -> Note | None:
    """Starts the other processes of this stage, if it has some; they end with the stack. The note says so."""
    kind = stage.partition("@")[0]
    if params.launch.processes == 1 or kind not in SHARED or (kind == "base" and params.base.teacher is not None):
        return None
    from flows.workshop.setup import device_of, processes_of  # only now, for not every stage imports them

    size = processes_of(params)

    def follow() -> None:
        for _ in started(params, stage_at(stage)):
            pass

    stack.enter_context(Crew(size, on_gpu=device_of(params).type == "cuda", folder=root(), follow=follow))
    return Note(f"{stage}: {size} processes share it") if size > 1 else None


class Bars:
    """The terminal: a bar for the work at hand, a line for each note; counts the seconds work took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.bar: Progress | None = None
        self.title = ""

    def __call__(self, event: Event) -> list[Event]:
        """Shows an event; returns the throughput when a piece of work is done."""
        if isinstance(event, Note):
            print(event.text, file=sys.stderr, flush=True)
        if not isinstance(event, Done):
            return []
        if self.bar is not None and event.title != self.title:  # work within other work, which goes on after it
            self._close()
        if self.bar is None:
            self.bar, self.title = Progress(event.title, event.total, event.unit, event.done), event.title
        self.bar.to(event.done)
        if event.done < event.total:
            return []
        seconds, first = self.bar.seconds, self.bar.first
        self._close()
        rate = f"cost/{event.what}_{event.unit}_per_second"
        return [Metrics(0, {rate: (event.total - first) / seconds})] if seconds else []

    def _close(self) -> None:
        if self.bar is not None:
            self.seconds += self.bar.seconds
            self.bar.close()
            self.bar = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
