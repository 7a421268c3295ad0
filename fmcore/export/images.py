"""Samples as files: a folder of PNGs that goes on where it was stopped, pages of a grid, a table."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.disk.files import ArtifactError, read_json, write_file, write_json
from fmcore.flow.pixels import quantise
from fmcore.models.folder import Trained
from fmcore.pictures import image_grid, png, sample_picture

RUN = "samples.json"  # what made the images of a folder
IMAGE = re.compile(r"(\d{6,})\.png")
PART = re.compile(r"\..*\.part")
SMALL_PAGE, SMALL_COLUMNS, PAGE, COLUMNS = 64, 8, 256, 16


def are_images(model: Trained) -> bool:
    """Whether its samples are grey or RGB images."""
    return model.makes_images and model.sample_shape[0] in (1, 3)


def claimed(folder: Path, run: Mapping[str, Any], count: int) -> list[int]:
    """Takes a folder for the images of a run, and returns the indices of those that are not there yet, in order.

    Main arguments:
        folder: new, empty, or one that the same run was writing.
        run: what decides the images; kept in the folder, and compared with what made those that are there.

    Raises:
        ArtifactError: if the folder holds anything else, or more images than `count`.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: expected a folder for the images")
    run = json.loads(json.dumps(run))  # as it comes back
    names = sorted(os.listdir(folder)) if folder.exists() else []
    for name in names:
        # A browser of files may leave hidden ones.
        if name != RUN and not IMAGE.fullmatch(name) and not name.startswith("."):
            raise ArtifactError(f"{folder} holds other files ({name}): expected a new or an empty folder")
    there = {
        int(found[1]) for name in names if (found := IMAGE.fullmatch(name)) and (folder / name).stat().st_size
    }
    if there and RUN not in names:
        raise ArtifactError(f"{folder} holds images, and no {RUN} says what made them: expected a new folder")
    if RUN in names:
        made = read_json(folder / RUN)
        for key in sorted(run.keys() | made.keys()):
            if run.get(key) != made.get(key):
                raise ArtifactError(
                    f"{folder} holds images of another run: its {key} was {made.get(key)}, this one's is "
                    f"{run.get(key)}; expected a new folder"
                )
    if there and max(there) >= count:
        raise ArtifactError(
            f"{folder} holds image {max(there)} of this run already: expected --count of at least "
            f"{max(there) + 1}, or a new folder"
        )
    for name in names:
        if PART.fullmatch(name):  # what a killed run left
            (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, run)
    return [i for i in range(count) if i not in there]


def write_images(folder: Path, batches: Iterable[Tensor], start: int, wanted: Iterable[int]) -> Iterator[int]:
    """Writes samples, of which the first has index `start`, as `000000.png`, ...; yields how many are done.

    Main arguments:
        batches: (N, C, H, W) each, of any N.
        wanted: indices of those to write.
    """
    left, first = set(wanted), start
    for samples in batches:
        for i, image in enumerate(quantise(samples).permute(0, 2, 3, 1), first):
            if i in left:
                # By rename, so that one that is there is whole. No sync: a folder of them would take minutes.
                part = folder / f".{i:06d}.png.part"
                part.write_bytes(png(image))
                part.replace(folder / f"{i:06d}.png")
        first += len(samples)
        yield first


def write_pages(batches: Iterable[Tensor], count: int, path: Path) -> list[Path]:
    """Writes `count` samples (N, *D) as a picture: images as a grid, in pages where they are many, or a plot.

    Returns the files: `path`, or `name-1-of-3.png`, ... beside it.
    """
    size, columns = (SMALL_PAGE, SMALL_COLUMNS) if count <= SMALL_PAGE else (PAGE, COLUMNS)
    pages, written = -(-count // size), list[Path]()
    waiting: Tensor | None = None
    for samples in batches:
        waiting = samples if waiting is None else torch.cat([waiting, samples])
        while waiting.ndim == 4 and len(written) < pages - 1 and len(waiting) >= size:
            written.append(path.with_name(f"{path.stem}-{len(written) + 1:0{len(str(pages))}}-of-{pages}.png"))
            image_grid(waiting[:size], written[-1], columns)
            waiting = waiting[size:]
    assert waiting is not None
    if waiting.ndim == 4:
        written.append(path if pages == 1 else path.with_name(f"{path.stem}-{pages}-of-{pages}.png"))
        image_grid(waiting, written[-1], columns)
    else:
        sample_picture(waiting, path)
        written.append(path)
    return written


def write_array(samples: Float[Tensor, "N *D"], path: Path, columns: Sequence[str] = ()) -> None:
    """Writes samples as .npy, or as a .csv of which a line is a sample; a ValueError if they are no points."""
    import numpy as np

    file = io.BytesIO()
    if path.suffix == ".npy":
        np.save(file, samples.numpy())
    elif samples.ndim == 2:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(columns or [f"dim{i}" for i in range(samples.shape[1])])
        file.write(text.getvalue().encode())
        np.savetxt(file, samples.numpy(), fmt="%.9g", delimiter=",")
    else:
        raise ValueError(
            f"samples of shape {tuple(samples.shape[1:])} are no table: expected .npy or .safetensors"
        )
    write_file(path, file.getvalue())
