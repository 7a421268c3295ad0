"""`python -m flows.disk`: what takes room in this checkout, and what a prune would free; `--prune` frees it."""

import argparse
import shutil
import subprocess
import sys

from flows.disk.usage import rooms, unused
from flows.workshop.place import root

# What the workspace, a branch, a tag or an experiment has is kept. Forced, for it was asked for with --prune.
PRUNE = ("--workspace", "--all-branches", "--all-tags", "--all-experiments", "--force")


def main() -> int:
    """Prints the table; prunes if asked to."""
    parser = argparse.ArgumentParser(prog="python -m flows.disk", description=__doc__)
    parser.add_argument("--prune", action="store_true", help="remove from DVC's cache what nothing has any more")
    prune, top = parser.parse_args().prune, root()
    free = shutil.disk_usage(top).free
    found = rooms(top)
    print(f"{'what':<22}{'where':<24}{'files':>8}{'MB':>10}")
    for what, where, size, files in found:
        print(f"{what:<22}{where:<24}{files:>8}{size / 1e6:>10,.1f}")
    print(f"{'in all':<46}{sum(row.files for row in found):>8}{sum(row.bytes for row in found) / 1e6:>10.1f}")
    print(f"{'free on the disk':<54}{free / 1e6:>10.1f}")
    objects = unused(top)
    size = sum(path.lstat().st_blocks * 512 for path in objects)
    what = f"{len(objects)} objects of DVC's cache that no branch, tag, experiment or the workspace has"
    if not prune:
        print(f"A prune would free {size / 1e6:.1f} MB: {what}. Do it: python -m flows.disk --prune")
        return 0
    done = subprocess.run([sys.executable, "-m", "dvc", "gc", "--quiet", *PRUNE], cwd=top, check=False)
    if done.returncode == 0:
        print(f"Freed {(shutil.disk_usage(top).free - free) / 1e6:.1f} MB: {what}.")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
