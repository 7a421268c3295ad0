"""How a journal keeps what it is given."""

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows as a CSV file, which MLflow shows as a table one can sort."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def link(source: str, target: str) -> None:
    """Gives a file a second name, or copies it where there are no hard links."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
