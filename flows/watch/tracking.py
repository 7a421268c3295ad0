"""What a stage leaves for MLflow: a journal on the local disk, sent on by `flows.watch.shipper`.

    stage --append--> work/journal/<run>/records.jsonl --ship--> MLflow

Importing MLflow costs a second and a call to it blocks for as long as its server likes, so a stage does
neither: it appends one JSON line per event (far below a millisecond) and a background process does the
rest. A stage therefore runs the same with a fast, a slow, a dead or no server.

A journal is a folder: `records.jsonl`, `log.txt`, under `files/` the pictures, tables and models that the
records name, and `shipped.json`, in which the shipper notes how many records are known to have arrived.

The stage holds a lock on its journal for as long as it lives. The kernel releases it however the stage
dies, which is how the shipper tells a stage that is still silent from one that was killed.

A journal that cannot be written (a full disk, say) loses what it cannot hold, never the stage's work.
"""

import csv
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from flows.events import Event, Metrics, ModelReady, Note, Picture, Progress, Table, Tag
from flows.local.process import Process, pipeline_key, pipeline_process
from flows.watch import database

RECORDS = "records.jsonl"
LOG = "log.txt"

Status = Literal["FINISHED", "FAILED", "KILLED"]


def journals(root: Path) -> Path:
    """The folder that holds one journal per unshipped run."""
    return root / "work" / "journal"


def lock_of_shipper(root: Path) -> Path:
    """The file that the one shipper at work keeps locked."""
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


@dataclass(frozen=True)
class Journal:
    """One stage's journal as read at one moment; without records, of which a power loss can rob it, it is void."""

    folder: Path
    alive: bool
    records: list[dict[str, Any]]
    shipped: int
    done: bool

    @property
    def start(self) -> dict[str, Any]:
        """What the stage said of itself."""
        return self.records[0]

    @property
    def end(self) -> dict[str, Any] | None:
        """How the stage ended, if it did; it is `KILLED` when it can no longer say so itself."""
        last = self.records[-1]
        if last["kind"] == "end":
            return last
        return None if self.alive else {"status": "KILLED", "time": last["time"]}

    @property
    def pipeline_alive(self) -> bool:
        """Whether the process that runs this stage's pipeline is alive."""
        return Process(*self.start["pipeline_process"]).alive()

    def remember(self, *, done: bool) -> None:
        """Notes on disk that the records have arrived, and whether nothing is left to do."""
        new = self.folder / "shipped.json.new"
        new.write_text(json.dumps({"shipped": len(self.records), "done": done}))
        new.replace(self.folder / "shipped.json")

    def discard(self) -> None:
        """Deletes the journal, which is gone at once for every reader."""
        gone = self.folder.with_name(f".{self.folder.name}.gone")
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def read_journal(folder: Path) -> Journal:
    """Reads the complete lines of a journal; a line torn by a kill has no end and is left out."""
    # In this order: a stage that ends after the first look counts as alive, not as killed.
    alive = is_locked(folder / RECORDS)
    path, state = folder / RECORDS, folder / "shipped.json"
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = [record for line in lines if (record := _parsed(line))]
    if records and records[0]["kind"] != "start":
        records = []
    known = (_parsed(state.read_bytes()) if state.exists() else None) or {"shipped": 0, "done": False}
    return Journal(folder, alive, records, known["shipped"], known["done"])


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A JSON object, or None where a power loss left something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def journal_folders(root: Path) -> list[Path]:
    """The journals that are not yet discarded."""
    return sorted(path for path in journals(root).iterdir() if not path.name.startswith("."))


class Run:
    """The journal of one stage; call it with every event, leave its context to close it.

    Without a `file` it does nothing.
    """

    def __init__(self, root: Path, folder: Path, file: BinaryIO | None, *, data: str | None) -> None:
        self._root = root
        self.folder = folder
        self._file = file
        self._data = data
        self._files = itertools.count()
        self._said = False

    def __call__(self, event: Event) -> None:
        """Appends an event; the journal keeps its own pictures and models, so their files may go at once."""
        if self._file is not None:
            with self._losing():
                self._keep(event)

    def _keep(self, event: Event) -> None:
        match event:
            case Metrics(step, values):
                self._append(kind="metrics", step=step, values=values)
            case Picture(name, path):
                files, kept = self._place(f"pictures/{name}.png")
                shutil.copyfile(path, kept)  # no link: plots are often redrawn into the same file
                self._append(kind="files", files=files)
            case Table(name, rows):
                files, kept = self._place(f"tables/{name}.csv")
                _write_csv(kept, rows)
                self._append(kind="files", files=files)
            case Tag(name, text):
                self._append(kind="tag", name=f"fmcore.{name}", text=text)
            case Note(text):
                with (self.folder / LOG).open("a") as log:
                    log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
                self._append(kind="note")
            case ModelReady(name, path):
                files, kept = self._place(name)
                shutil.copytree(path, kept, copy_function=_link)
                registered = f"{self._data}-{name}" if self._data else name
                self._append(kind="model", name=name, registered=registered, files=files)
            case Progress():
                pass

    def close(self, status: Status) -> None:
        """Ends the run; a second call changes nothing."""
        if self._file is None or self._file.closed:
            return
        with self._losing():
            self._append(kind="end", status=status)
        with self._losing():
            self._file.close()  # releases the lock
        with self._losing():
            if trouble := database.told_trouble(self._root, pipeline_key()):
                _say(trouble)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match error:  # as `flows.watch.runs` tells Prefect
            case None | SystemExit(code=None | 0):
                self.close("FINISHED")
            case KeyboardInterrupt() | SystemExit(code=130 | 143):
                self.close("KILLED")
            case _:
                self.close("FAILED")

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Lets what cannot be kept go, which is said once: the stage's work is worth more than its record."""
        try:
            yield
        except OSError as error:
            if not self._said:
                _say(f"MLflow will lack something of this stage: {error}")
            self._said = True

    def _place(self, path: str) -> tuple[str, Path]:
        """A new folder for one record's files, and where in it to put `path`."""
        files = f"files/{next(self._files)}"
        kept = self.folder / files / path
        kept.parent.mkdir(parents=True)
        return files, kept

    def _append(self, **record: object) -> None:
        assert self._file is not None
        line = json.dumps(record | {"time": time.time()}, default=_plain).encode() + b"\n"
        # One unbuffered write, so that a killed stage loses at most the line it was writing.
        written = self._file.write(line)
        if written < len(line):  # a disk that has become full takes a part, to which the next would be joined
            os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_run(root: Path, *, stage: str, params: Mapping[str, object], tags: Mapping[str, str]) -> Run:
    """Opens the journal of a stage and sees to it that a shipper is at work.

    Main arguments: `root`, the repository; `stage`, its name in dvc.yaml; `params`, nested as they come;
    `tags`, of which `fmcore.data` names the data in the registered names of models, as `digits-student`.

    Where no journal can be made, the run returned does nothing.
    """
    name = uuid.uuid4().hex
    folder, hidden = journals(root) / name, journals(root) / f".{name}"
    with ExitStack() as undo:
        try:
            hidden.mkdir(parents=True)
            undo.callback(shutil.rmtree, hidden, ignore_errors=True)
            file = undo.enter_context((hidden / RECORDS).open("ab", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX)
            run = Run(root, folder, file, data=tags.get("fmcore.data"))
            run._append(
                kind="start",
                stage=stage,
                params=flattened(params),
                tags=tags,
                pipeline=pipeline_key(),
                pipeline_process=pipeline_process(),
            )
            # Only now can the shipper see it: never unlocked, never without its first record.
            hidden.rename(folder)
        except OSError as error:
            _say(f"MLflow will not show {stage}: {error}")
            return Run(root, folder, None, data=None)
        undo.pop_all()
    try:
        start_shipper(root)
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"MLflow will show {stage} later, its journal is kept: {error}")
    return run


def start_shipper(root: Path) -> None:
    """Starts the background process that sends journals to MLflow, unless one is at work.

    A shipper that is about to leave looks for new journals after it has released its lock, so a journal
    written before this call is never left behind.
    """
    if is_locked(lock_of_shipper(root)):
        return
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    log = str(root / "work" / "shipper.log")
    # The shell leaves at once, so the shipper is nobody's child: no zombie, and no one waits for it.
    subprocess.run(
        [
            "/bin/sh",
            "-c",
            '"$@" </dev/null >>"$0" 2>&1 &',
            log,
            sys.executable,
            "-m",
            "flows.watch.shipper",
            str(root),
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        check=True,
    )


def flattened(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and texts.

    >>> flattened({"train": {"seed": 0, "rates": [1, 2]}})
    {'train.seed': '0', 'train.rates': '[1, 2]'}
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """MLflow shows a CSV file as a table one can sort."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _plain(value: Any) -> Any:
    """A NumPy or PyTorch number as Python's."""
    return value.item()
