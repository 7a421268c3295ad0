"""What a stage leaves for Prefect and MLflow: a journal on the local disk, sent on by `flows.watch.postman`.

    stage --append--> work/journal/<name>/records.jsonl --postman--> MLflow, Prefect

Importing either costs seconds and a call to it blocks for as long as its server likes, so a stage does neither: it
appends one JSON line per event (far below a millisecond) and a background process does the rest. A stage therefore
runs the same with a fast, a slow, a dead or no server.

A journal is a folder: `records.jsonl`, `log.txt`, and the pictures, tables and models that the records name. Each
reader has a file in it, `mlflow.json` or `prefect.json`: up to which byte the records are known to have arrived.

The stage holds a lock on its journal for as long as it lives, and the kernel releases it however the stage dies:
a silent stage is told from a killed one by it.

A journal that cannot be written (a full disk, say) loses what it cannot hold, never the stage's work.
"""

import errno
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self

from flows.events import Event, Metrics, ModelReady, Note, Picture, Progress, Rated, Table, Tag
from flows.local import api
from flows.local.process import Process, pipeline_key, pipeline_process
from flows.watch import waiting
from flows.watch.keeping import keep_model, write_csv
from flows.watch.plain import plain

RECORDS = "records.jsonl"
LOG = "log.txt"
MODELS = "models"  # apart from the other files: only MLflow wants them, and they are large
PROGRESS_SECONDS = 2.0
# Of the environment: the task of the parent flow that a stage runs in, and that flow's run.
PARENTS = {"parent_task_run": "FMCORE_PARENT_TASK_RUN", "parent_flow_run": "FMCORE_PARENT_FLOW_RUN"}

Status = Literal["FINISHED", "FAILED", "KILLED"]


def journals(root: Path) -> Path:
    """The folder that holds one journal per unshipped run."""
    return root / "work" / "journal"


def lock_of_postman(root: Path) -> Path:
    """The file that the one postman at work keeps locked."""
    return journals(root) / ".lock"


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


class Record(NamedTuple):
    """One line of a journal, and the byte after it."""

    kind: str
    time: float
    of: dict[str, Any]
    stop: int


@dataclass(frozen=True)
class Journal:
    """One stage's journal as one of its readers finds it.

    Main arguments:
        alive: whether the stage still lives.
        start: what the stage said of itself.
        fresh: the records that this reader has not delivered.
        end: how the stage ended, if it did; it is `KILLED`, and `silent`, when it can no longer say so itself.
        state: what the reader has noted in the journal: `offset`, `done`, and what it needs besides.
    """

    folder: Path
    reader: str
    alive: bool
    start: dict[str, Any]
    fresh: list[Record]
    end: dict[str, Any] | None
    state: dict[str, Any]

    @property
    def pipeline_alive(self) -> bool:
        """Whether the process that runs this stage's pipeline is alive."""
        return Process(*self.start["pipeline_process"]).alive()

    @property
    def done(self) -> bool:
        """Whether the reader has nothing left to do here."""
        return bool(self.state.get("done"))

    def remember(self, **state: object) -> None:
        """Notes on disk that the fresh records have arrived, and what else the reader needs."""
        if self.fresh:
            self.state.update(offset=self.fresh[-1].stop, time=self.fresh[-1].time)
        if self.end is not None and not self.end.get("silent"):
            self.state["end"] = self.end
        self.state.update(state)
        write_state(self.folder, self.reader, self.state)


def discard(folder: Path) -> None:
    """Deletes a journal, which is gone at once for every reader."""
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def read_journal(folder: Path, reader: str) -> Journal | None:
    """Reads what a reader has not delivered; a line torn by a kill has no end and is left out.

    None where a power loss took the stage's first record, which makes the journal void.
    """
    # In this order: a stage that ends after the first look counts as alive, not as killed.
    alive, state = is_locked(folder / RECORDS), read_state(folder, reader)
    offset = int(state.get("offset", 0))
    start = start_of(folder)
    if start is None:
        return None
    with (folder / RECORDS).open("rb") as file:
        file.seek(max(0, offset - 1))
        if offset and file.read(1) != b"\n":  # never, unless the disk lost what was delivered
            return None
        fresh, stop = list[Record](), offset
        for line in file:
            if line.endswith(b"\n"):
                stop += len(line)
                if (found := _parsed(line)) is not None:
                    fresh.append(Record(found["kind"], found["time"], found, stop))
        end = next((record.of for record in fresh if record.kind == "end"), state.get("end"))
        if end is None and not alive:
            last = fresh[-1].time if fresh else state.get("time", start["time"])
            end = {"status": "KILLED", "time": last, "silent": True}
        return Journal(folder, reader, alive, start, fresh, end, state)


def start_of(folder: Path) -> dict[str, Any] | None:
    """What a stage said of itself, None where a power loss took it."""
    with suppress(FileNotFoundError), (folder / RECORDS).open("rb") as file:
        head = file.readline()
        start = (_parsed(head) if head.endswith(b"\n") else None) or {}
        return start if start.get("kind") == "start" else None
    return None


def read_state(folder: Path, reader: str) -> dict[str, Any]:
    """What a reader has noted in a journal."""
    path = folder / f"{reader}.json"
    return (_parsed(path.read_bytes()) if path.exists() else None) or {}


def write_state(folder: Path, reader: str, state: Mapping[str, Any]) -> None:
    """Notes it, whole or not at all."""
    new = folder / f"{reader}.json.new"
    new.write_text(json.dumps(state))
    new.replace(folder / f"{reader}.json")


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A record, or None where a power loss left something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def journal_folders(root: Path) -> list[Path]:
    """The journals that are not yet discarded."""
    return sorted(path for path in journals(root).iterdir() if path.is_dir() and not path.name.startswith("."))


class Writer:
    """The journal of one stage; call it with every event, leave its context to close it.

    Without a `file` it does nothing.
    """

    def __init__(self, root: Path, folder: Path, file: BinaryIO | None) -> None:
        self._root = root
        self.folder = folder
        self._file = file
        self._files = itertools.count()
        self._shown: dict[str, float] = {}  # when the progress of each work was last written
        self._said = False

    def __call__(self, event: Event) -> None:
        """Appends an event; the journal keeps its own pictures and models, so their files may go at once."""
        if self._file is not None:
            with self._losing():
                self._keep(event)

    def _keep(self, event: Event) -> None:
        match event:
            case Metrics(step, values, of):
                self._append(kind="metrics", step=step, values=values, of=of)
            case Picture(name, path, beside, of):
                files, kept = self._place(f"pictures/{name}.png")
                shutil.copyfile(path, kept)  # no link: plots are often redrawn into the same file
                self._append(kind="picture", name=name, files=files, beside=beside, of=of)
            case Table(name, rows):
                files, kept = self._place(f"tables/{name}.csv")
                write_csv(kept, rows)
                self._append(kind="table", name=name, files=files, rows=rows)
            case Tag(name, text):
                self._append(kind="tag", name=f"fmcore.{name}", text=text)
            case Note(text):
                with (self.folder / LOG).open("a") as log:
                    log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
                self._append(kind="note", text=text)
            case ModelReady(name, path):
                files, kept = self._place(name, under=MODELS)
                keep_model(path, kept)
                self._append(kind="model", name=name, path=path, files=files)
            case Rated(name, sha256, yardstick, scores, samples):
                files, kept = self._place("samples.png")
                shutil.copyfile(samples, kept)
                about = {"name": name, "sha256": sha256, "yardstick": yardstick, "scores": scores, "files": files}
                self._append(kind="rated", **about)
            case Progress(done=done, total=total, unit=unit, title=what):
                if done in (0, total) or time.monotonic() - self._shown.get(what, 0.0) > PROGRESS_SECONDS:
                    self._shown[what] = time.monotonic()
                    self._append(kind="progress", what=what, done=done, total=total, unit=unit)

    def close(self, status: Status, message: str = "") -> None:
        """Ends the journal; a second call changes nothing."""
        if self._file is None or self._file.closed:
            return
        with self._losing():
            self._append(kind="end", status=status, message=message)
        with self._losing():
            self._file.close()  # releases the lock
        with self._losing():
            for line in waiting.told(self._root, pipeline_key()):
                _say(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match error:
            case None | SystemExit(code=None | 0):
                self.close("FINISHED")
            case KeyboardInterrupt() | SystemExit(code=130 | 143):
                self.close("KILLED", "interrupted; the same command resumes it")
            case SystemExit():
                self.close("FAILED", f"exit {error.code}")
            case _:
                line = next(iter(str(error).strip().splitlines()), "")
                self.close("FAILED", f"{type(error).__name__}: {line[:500]}")

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Lets what cannot be kept go, which is said once: the stage's work is worth more than its record."""
        try:
            yield
        except OSError as error:
            if not self._said:
                _say(f"Prefect and MLflow will lack something of this stage: {error}")
            self._said = True

    def _place(self, path: str, under: str = "files") -> tuple[str, Path]:
        """A new folder for one record's files, and where in it to put `path`."""
        files = f"{under}/{next(self._files)}"
        kept = self.folder / files / path
        kept.parent.mkdir(parents=True)
        return files, kept

    def _append(self, **record: object) -> None:
        assert self._file is not None
        line = json.dumps(plain(record | {"time": time.time()})).encode() + b"\n"
        # One unbuffered write, so that a killed stage loses at most the line it was writing.
        written = self._file.write(line)
        if written < len(line):  # a disk that has become full takes a part, to which the next would be joined
            os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_journal(
    root: Path,
    *,
    stage: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    model: str = "",
    models: Sequence[str] = (),
    by_model: Mapping[str, Mapping[str, object]] | None = None,
    always: bool = False,
    place: Path | None = None,
) -> Writer:
    """Opens the journal of a stage and sees to it that the postman is at work.

    It names the Prefect API to tell and the run above, but no login. Where none can be made, it does nothing.

    Main arguments:
        root: the repository.
        stage: its address in dvc.yaml; its `params` are nested as they come.
        tags: of which `fmcore.data` names the data.
        model: what the stage is about; `models` are all of the pipeline, in order.
        by_model: the parameters that decide a model: the one that the stage is about, or all that it tells of.
        always: whether the stage runs even if nothing has changed.
        place: where DVC runs the stage and keeps its dvc.lock, `root` if None; an experiment's is elsewhere.
    """
    name = uuid.uuid4().hex
    folder, hidden = journals(root) / name, journals(root) / f".{name}"
    with ExitStack() as undo:
        try:
            hidden.mkdir(parents=True)
            undo.callback(shutil.rmtree, hidden, ignore_errors=True)
            file = undo.enter_context((hidden / RECORDS).open("ab", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX)
            run = Writer(root, folder, file)
            run._append(
                kind="start",
                stage=stage,
                params=plain(params),
                tags=tags,
                model=model,
                models=models,
                by_model=plain(by_model or {}),
                always=always,
                place=str(place or root),
                api=api.address_of(root),
                **{key: os.environ.get(name) or None for key, name in PARENTS.items()},
                pipeline=pipeline_key(),
                pipeline_process=pipeline_process(),
            )
            # Only now can the postman see it: never unlocked, never without its first record.
            hidden.rename(folder)
        except OSError as error:
            _say(f"Prefect and MLflow will not show {stage}: {error}")
            return Writer(root, folder, None)
        undo.pop_all()
    try:
        start_postman(root)
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"Prefect and MLflow will show {stage} later, its journal is kept: {error}")
    return run


def start_postman(root: Path) -> None:
    """Starts the background process that sends journals on, unless one is at work.

    A postman that is about to leave looks for new journals after it has released its lock, so a journal
    written before this call is never left behind.
    """
    if is_locked(lock_of_postman(root)):
        return
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    log = str(root / "work" / "postman.log")
    # The shell leaves at once, so the postman is nobody's child: no zombie, and no one waits for it.
    subprocess.run(
        [
            "/bin/sh",
            "-c",
            '"$@" </dev/null >>"$0" 2>&1 &',
            log,
            sys.executable,
            "-m",
            "flows.watch.postman",
            str(root),
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        check=True,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
