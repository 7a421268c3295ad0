"""`make verify`: reads every out and every object of DVC's cache again and compares it with its digest.

DVC does not read a write-protected file of its cache again, so `dvc repro` never finds a bit that the disk has
flipped. What is damaged is named. `--mend` removes it, so that the next `dvc repro` makes it again, or `dvc pull`
brings it: an out shares its bytes with the cache, so both go.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flows.local.lockfile import LOCK_FILE
from flows.local.objects import cache_of, listed, md5, object_path, objects
from flows.where.checkout import locked, root_above
from fmcore.disk.files import ArtifactError
from fmcore.disk.sums import SUMS, check
from fmcore.progress import Progress


class Damage(NamedTuple):
    """A file that is not what it should be, and what is wrong."""

    path: Path
    reason: str


class Found(NamedTuple):
    """How many files and bytes were read, what is damaged, and what could not be compared, in lines."""

    files: int
    bytes: int
    damaged: list[Damage]
    missing: list[str]


def verified(top: Path, outs: Mapping[str, str]) -> Found:
    """Reads the cache and the outs, whose digests are given by path; with a bar where someone looks."""
    cache = cache_of(top)
    expected = [(path, name.removesuffix(".dir"), "the object in DVC's cache") for name, path in objects(cache)]
    read: dict[tuple[int, int], str] = {}
    damaged, missing, size = [], [], 0
    for out, digest in outs.items():
        files, missed = _files(cache, top / out, digest)
        expected += [(path, md5, "the file") for path, md5 in files.items()]
        missing += missed
    bar = Progress("verify", len(expected), "files")
    for done, (path, digest, what) in enumerate(expected, 1):
        bar.to(done)
        if not path.is_file():
            missing.append(f"{path}: not here; dvc repro makes it, dvc pull brings it")
            continue
        state = path.stat()
        key = state.st_dev, state.st_ino  # an out and its object are one file where the disk has hard links
        if key not in read:
            read[key] = _digest(path)
            size += state.st_size
        if read[key] != digest:
            damaged.append(Damage(path, f"{what} has MD5 {read[key]}, expected {digest}"))
    bar.close()
    return Found(len(read), size, damaged, missing)


def _files(cache: Path, out: Path, digest: str) -> tuple[dict[Path, str], list[str]]:
    """The files of an out and their digests; a line if the cache does not tell those of a folder."""
    if not digest.endswith(".dir"):
        return {out: digest}, []
    path = object_path(cache, digest)
    if path.is_file() and _digest(path) == digest.removesuffix(".dir"):
        return {out / name: md5 for name, md5 in listed(cache, digest).items()}, []
    if not out.exists():
        return {}, [f"{out}: not here; dvc repro makes it, dvc pull brings it"]
    try:
        check(out)
    except ArtifactError as error:
        return {}, [str(error)]
    return {}, [f"{out}: fits its {SUMS}; not compared with DVC's, for its cache lacks the list of the files"]


def _digest(path: Path) -> str:
    try:
        return md5(path)
    except OSError as error:
        return f"none ({error.strerror})"


def main() -> int:
    """Prints what is damaged or could not be compared; returns 1 if anything is, and was not mended."""
    parser = argparse.ArgumentParser(prog="python -m flows.disk.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("--mend", action="store_true", help="remove what is damaged, so that it is made again")
    mend, top = parser.parse_args().mend, root_above(Path.cwd())
    if top is None:
        print("expected a folder in a checkout, with a dvc.yaml in it or above", file=sys.stderr)
        return 2
    path = top / LOCK_FILE
    outs = locked(path.read_text(errors="replace")) if path.is_file() else {}
    found = verified(top, {out.path: out.md5 for out in outs.values()})
    for damage in found.damaged if mend else ():
        damage.path.unlink()
    for at, reason in found.damaged:
        print(f"{_short(at, top)}: {reason}")
    for line in found.missing:
        print(line.replace(f"{top}/", "", 1))
    print(f"{found.files} files, {found.bytes / 1e6:,.1f} MB, read: {len(found.damaged)} damaged")
    if found.damaged and mend:
        print("What is damaged was removed; dvc repro makes it again, dvc pull brings it.")
    elif found.damaged:
        print(
            "Mend it: python -m flows.disk.verify --mend. Is it an edit of yours, or of another run (dvc status)?"
        )
        print("Then dvc commit or dvc checkout says which of the two is right.")
    if not outs:
        print(f"{LOCK_FILE} is missing or torn, so no out was compared; make repro mends it")
    return 1 if (found.damaged and not mend) or found.missing or not outs else 0


def _short(path: Path, top: Path) -> Path:
    return path.relative_to(top) if top in path.parents else path


if __name__ == "__main__":
    sys.exit(main())
