"""`python -m flows.disk`: what takes room in this checkout, and what a prune would free; `--prune` frees it."""

import argparse
import shutil
import sys
from pathlib import Path

from flows.disk.usage import NotKnownError, Room, rooms, unused
from flows.where.checkout import root_above


def main() -> int:
    """Prints the table; prunes if asked to."""
    parser = argparse.ArgumentParser(prog="python -m flows.disk", description=__doc__)
    parser.add_argument("--prune", action="store_true", help="remove from DVC's cache what nothing has any more")
    prune, top = parser.parse_args().prune, root_above(Path.cwd())
    if top is None:
        print("expected a folder in a checkout, with a dvc.yaml in it or above", file=sys.stderr)
        return 2
    _print(rooms(top), shutil.disk_usage(top).free)
    try:
        found = unused(top)
    except NotKnownError as error:
        print(f"What a prune would free is not known: {error}", file=sys.stderr)
        return int(prune)
    size = sum(path.lstat().st_blocks * 512 for path in found if path.lstat().st_nlink == 1)
    for path in found if prune else ():
        path.unlink()
    did, how = ("Freed", "") if prune else ("A prune would free", " Do it: python -m flows.disk --prune")
    print(
        f"{did} {size / 1e6:,.1f} MB: {len(found)} objects of DVC's cache that neither the workspace has nor the "
        f"newest commit of a branch, a tag or an experiment. Older commits lose theirs.{how}"
    )
    return 0


def _print(found: list[Room], free: float) -> None:
    print(f"{'what':<22}{'where':<24}{'files':>8}{'MB':>12}")
    for what, where, size, files in found:
        print(f"{what:<22}{Path(where)!s:<24}{files:>8,}{size / 1e6:>12,.1f}")
    print(f"{'in all':<46}{sum(row.files for row in found):>8,}{sum(row.bytes for row in found) / 1e6:>12,.1f}")
    print(f"{'free on the disk':<54}{free / 1e6:>12,.1f}")


if __name__ == "__main__":
    sys.exit(main())
