"""How a journal keeps what it is given."""

import csv
import json
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


def keep_model(folder: Path, target: Path) -> None:
    """Keeps a model folder, and in it the autoencoder that a model of latents needs, which lies once for all."""
    shutil.copytree(folder, target, copy_function=link)
    config, decoder = folder / "config.json", folder.resolve().parent.parent / "dataset" / "autoencoder"
    if decoder.is_dir() and config.is_file() and json.loads(config.read_text()).get("encoding"):
        shutil.copytree(decoder, target / decoder.name, copy_function=link)
