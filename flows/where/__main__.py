"""`python -m flows.where THING`: where a thing comes from, and how to make it again.

A THING is a file that a stage made (models/r1/model.safetensors), a digest (DVC's md5, a manifest's sha256, or how
one begins), a registered version (fmcore-digits/3, models:/fmcore-digits@best-at-1), a run of MLflow's or
Prefect's by its id, or the name of a DVC experiment.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.where.chain import Line, commands, lines
from flows.where.checkout import Checkout, root_above
from flows.where.finding import Unknown, find
from flows.where.records import Records


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the chain of a thing; returns the exit status, 1 with a line if nothing is called that."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m flows.where", description=__doc__, formatter_class=about)
    parser.add_argument("thing", metavar="THING", help="a file, a digest, a version, a run or an experiment")
    thing = parser.parse_args(arguments).thing
    root = root_above(Path.cwd())
    if root is None:
        print("no dvc.yaml here or above: run it in the project's folder", file=sys.stderr)
        return 1
    checkout, records = Checkout(root), Records(root)
    try:
        found = find(checkout, records, thing)
    except Unknown as error:
        print(error, file=sys.stderr)
        return 1
    print(thing)
    _print(lines(checkout, records, found), ":")
    print("again:")
    for command, note in commands(checkout, found):
        print(f"  {command}" + (f"  # {note}" if note else ""))
    return 0


def _print(told: Sequence[Line], mark: str) -> None:
    """The lines, their texts below each other; a text's own lines too, and a name once where it comes twice."""
    width = max(len(name) for name, _ in told) + len(mark)
    before = ""
    for name, text in told:
        shown = f"{name}{mark}" if name != before else ""
        for line in text.split("\n"):
            print(f"  {shown:{width}} {line}")
            shown = ""
        before = name


if __name__ == "__main__":
    sys.exit(main())
