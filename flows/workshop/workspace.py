"""Work in progress: a folder a stage can come back to, and the publishing of finished outputs.

DVC deletes a stage's outputs before it runs the stage, so what must survive a kill lies elsewhere: in
`work/<stage>/<key>/`, where the key is a digest of all that decides the result (`flows.workshop.entry`). The same
command resumes there; other parameters, inputs or code have another folder. It is removed when the stage is done.

A file that a stage resumes from carries its own checksum (`fmcore.disk.kept`). When the stage begins again, a
damaged one is removed, which a line says; so are files without a checksum, as pictures and what lies in `out`.
Readers of `scratch` and `pairs` compare what they find there.
"""

import csv
import errno
import fcntl
import io
import os
import shutil
import sys
import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from flows.layout import CHECKED, CHECKED_FEATURES, WORK
from flows.params.schema import Params
from flows.workshop.entry import Entry, Stage, digest_of, entry_of
from flows.workshop.place import root
from fmcore.disk.files import ArtifactError, read_json, write_file
from fmcore.disk.kept import is_whole
from fmcore.disk.sums import check, seal_all
from fmcore.flow.ranks import barrier, ranks

BUSY_SECONDS = 10.0
KEPT_SECONDS = 24 * 3600.0  # for those who wait
SCRATCH, PAIRS = "scratch", "pairs"  # folders whose readers compare what they find with checksums
NAMED = 5  # files in a line
# If one of these is damaged, all else in the folder goes, since it was made with it.
BASES = ("grid.json", "batch.json", "spaces.json", "inverted-*.safetensors")


class BusyError(RuntimeError):
    """Another process does the same work."""


class TakenOver(Exception):
    """Another experiment did the same work meanwhile, and its outputs are in their places."""


@contextmanager
def workspace(stage: Stage, params: Params) -> Iterator[Path]:
    """The folder where this stage with these parameters keeps its unfinished work; removed on success.

    Of several processes the first holds it, and the others wait for that.

    Raises:
        BusyError: if another process holds it, and this is not an experiment.
        TakenOver: if this is one, waited for another process, and has its outputs now.
    """
    entry = entry_of(stage.address, params.model_dump(mode="json"))
    folder = root() / WORK / stage.address.replace("@", "-") / digest_of(entry, Path.cwd())
    if not ranks().leads:
        barrier()
        yield folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted, kept = folder.with_suffix(".wanted"), folder.with_suffix(".kept")
    _prune(folder.parent)
    # The lock lies beside the folder and is never removed: a removed one could be held by two processes.
    with folder.with_suffix(".lock").open("a+") as lock:
        if _take(lock, stage.address, wanted) and _is_whole(kept, entry):
            for out in entry.outs:
                _put(kept / out, out)
            raise TakenOver(f"{stage.address} is what another experiment made meanwhile")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()
        folder.mkdir(exist_ok=True)  # only now: who held the lock removed it
        _sweep(folder, stage.address)
        barrier()
        yield folder
        if wanted.exists():
            _hand_over(entry, kept, wanted)
        _remove(folder)


def _sweep(folder: Path, stage: str) -> None:
    """Removes what a killed writer left, and what cannot be trusted, which is said: it is made again."""
    kept: list[Path] = []
    others: list[Path] = []
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name not in (SCRATCH, PAIRS):
                shutil.rmtree(path)
        else:
            (kept if path.suffix in (".json", ".safetensors") else others).append(path)
    for part in folder.glob("*/**/.*.part"):
        part.unlink()
    spoilt = [path for path in kept if path.is_symlink() or not path.is_file() or not is_whole(path)]
    whole = {path.name for path in kept if path not in spoilt}
    steps = [path for path in kept if path.name.startswith("step-") and path.name in whole]
    spoilt += [path for path in steps if f"curve-{path.stem[5:]}.json" not in whole]
    has_pairs = any((folder / PAIRS).rglob("pairs-*"))
    lost = has_pairs and not {"grid.json", "batch.json"} <= whole
    anew = lost or any(path.match(base) for path in spoilt for base in BASES)
    if anew:
        _remove(folder)
        folder.mkdir()
    for path in [*spoilt, *others] if not anew else ():
        path.unlink()
    if spoilt or lost:
        names = sorted(path.name for path in spoilt) or ["grid.json or batch.json is gone"]
        which = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        what = "all of its unfinished work is made again" if anew else f"{len(names)} kept files are made again"
        print(f"{stage}: {what}, since these are damaged: {which}", file=sys.stderr, flush=True)


def started_again(path: Path) -> ArtifactError:
    """Empties the folder of unfinished work that lacks a file; the error to raise says so."""
    for other in path.parent.iterdir():
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    return ArtifactError(f"{path} was missing, which all since was made with: the same command makes it all again")


def _remove(folder: Path) -> None:
    """Removes a folder in one step, so that a kill leaves all of it or none; `_prune` finds what is left then."""
    gone = folder.with_suffix(f".{os.getpid()}.gone")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # another stage may be at it


def _hand_over(entry: Entry, kept: Path, wanted: Path) -> None:
    """Keeps a stage's outputs for those who wait for them."""
    if not all(out.exists() for out in entry.outs):
        return
    part = kept.with_suffix(".part")
    for out in entry.outs:
        _put(out, part / out)
    shutil.rmtree(kept, ignore_errors=True)  # of the same digest, so with the same in it
    part.rename(kept)
    wanted.unlink()


def _is_whole(kept: Path, entry: Entry) -> bool:
    """Whether what another experiment kept is all there, and fits its checksums where it has any."""
    try:
        for out in entry.outs:
            check(kept / out)
    except ArtifactError:
        return False
    return all((kept / out).exists() for out in entry.outs)


def _put(source: Path, place: Path) -> None:
    """A file or folder at another place, too; its files are shared where the disk allows."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, copy_function=_link)
    else:
        _link(source, place)


def _link(source: str | Path, place: str | Path) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def _prune(folder: Path) -> None:
    """Removes what nobody came for, and what a kill left of what was removed."""
    for path in folder.glob("*.gone"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob("*.kept"), *folder.glob("*.part")]:
        if time.time() - path.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def made_by(params: Params, stage: Stage) -> dict[str, Any]:
    """What a manifest says of the stage that made the folder: its parameters, and what `check` found in files."""
    entry = entry_of(stage.address, params.model_dump(mode="json"))
    about = {"stage": stage.address, "params": entry.params}
    checked = [read_json(file) for file in (CHECKED, CHECKED_FEATURES) if file in entry.inputs]
    return about | ({"checked": dict(ChainMap(*checked))} if checked else {})


def _take(lock: TextIO, stage: str, wanted: Path) -> bool:
    """Locks, waiting a little: a stage whose caller was killed takes a moment to notice and end.

    In an experiment it waits for as long as it takes: another of a queue may do the same stage at the same time,
    and learns from the file `wanted` that its outputs are waited for. Returns whether an experiment had to wait.
    """
    deadline, said, waited = time.monotonic() + BUSY_SECONDS, False, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            if not waited and root() != Path.cwd():
                waited = True
                wanted.touch()
            if time.monotonic() > deadline and not said:
                lock.seek(0)
                busy = f"{stage} is already running (process {lock.read().strip()})"
                if root() == Path.cwd():
                    raise BusyError(f"{busy}; wait for it") from None
                print(f"{busy} in another experiment; waiting for it", file=sys.stderr, flush=True)
                said = True
            time.sleep(0.1)


def publish(finished: Path, out: Path) -> None:
    """Moves a finished file, or folder with its checksums, to its place in one rename; replaces what was there."""
    if finished.is_dir():
        seal_all(finished)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        shutil.rmtree(out)
    try:
        finished.replace(out)
    except OSError as error:
        if error.errno != errno.EXDEV:  # DVC's experiments may run on another file system
            raise
        shutil.move(finished, out)


def write_table(path: Path, names: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(lines)
    write_file(path, text.getvalue().encode())


def need_space(folder: Path, size: int, what: str) -> None:
    """Raises OSError if the disk that holds `folder` has less than `size` bytes free, with 5 % to spare."""
    free = shutil.disk_usage(folder).free
    if free < 1.05 * size:
        raise OSError(f"no space for {what}: it needs {size / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free")
