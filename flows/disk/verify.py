"""`make verify`: reads every out and every object of DVC's cache again and compares it with its digest.

DVC takes a cached file for whole as long as nobody may write it, so a bit that the disk flipped is never found by
`dvc repro`. What is damaged is named. `--mend` removes it, so that the next `dvc repro` makes it again, or a
`dvc pull` brings it: an out shares its bytes with the cache, so both go.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flows.disk.objects import cached_objects, listed, md5
from flows.local.lockfile import LOCK_FILE
from flows.where.checkout import locked
from flows.workshop.place import root
from fmcore.progress import Progress


class Damage(NamedTuple):
    """A file that is not what it should be: its path from the root, and what is wrong."""

    path: Path
    reason: str


class Found(NamedTuple):
    """How many files and bytes were read, what is damaged, and what is not here."""

    files: int
    bytes: int
    damaged: list[Damage]
    missing: list[Path]


def verified(top: Path, outs: Mapping[str, str]) -> Found:
    """Reads the cache and the outs, whose digests are given by path; with a bar where someone looks."""
    read: dict[tuple[int, int], str] = {}
    damaged, missing, size = [], [], 0
    expected = [
        (path, name.removesuffix(".dir"), "the object in DVC's cache") for name, path in cached_objects(top)
    ]
    for out, digest in outs.items():
        files = listed(top, out, digest)
        missing += [Path(out)] if files is None else []
        expected += [(top / file.path, file.md5, "the file") for file in files or ()]
    bar = Progress("verify", len(expected), "files")
    for done, (path, digest, what) in enumerate(expected, 1):
        bar.to(done)
        if not path.is_file():
            missing.append(path.relative_to(top))
            continue
        state = path.stat()
        key = state.st_dev, state.st_ino  # an out and its object are one file where the disk has hard links
        if key not in read:
            read[key] = md5(path)
            size += state.st_size
        if read[key] != digest:
            damaged.append(Damage(path.relative_to(top), f"{what} has MD5 {read[key]}, expected {digest}"))
    bar.close()
    return Found(len(read), size, damaged, missing)


def lines(found: Found, *, mended: bool) -> list[str]:
    """What was found, and what to do about it."""
    said = [f"{path}: {reason}" for path, reason in found.damaged]
    said += [f"{path}: not here; dvc repro makes it, dvc pull brings it" for path in found.missing]
    said += [f"{found.files} files, {found.bytes / 1e6:,.1f} MB, read: {len(found.damaged)} damaged"]
    if found.damaged and mended:
        said += ["What is damaged was removed; dvc repro makes it again, dvc pull brings it."]
    elif found.damaged:
        said += ["Edited on purpose? dvc commit takes it as it is. Else: python -m flows.disk.verify --mend"]
    return said


def main() -> int:
    """Prints what is damaged; returns 1 if anything is, and was not removed."""
    parser = argparse.ArgumentParser(prog="python -m flows.disk.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("--mend", action="store_true", help="remove what is damaged, so that it is made again")
    mend, top = parser.parse_args().mend, root()
    path = top / LOCK_FILE
    outs = locked(path.read_text()) if path.exists() else {}
    found = verified(top, {out.path: out.md5 for out in outs.values()})
    for damage in found.damaged if mend else ():
        (top / damage.path).unlink()
    print("\n".join(lines(found, mended=mend)))
    return 1 if found.damaged and not mend else 0


if __name__ == "__main__":
    sys.exit(main())
