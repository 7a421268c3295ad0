"""A folder of images as it is, to be scored: read as a data set is, but not resized."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fmcore.disk.dataset import DataError
from fmcore.disk.files import ArtifactError
from fmcore.flow.rng import generator
from fmcore.intake.decoding import Levels, cores, read_images
from fmcore.intake.images import images_in
from fmcore.intake.notes import Tally, found_notes
from fmcore.intake.planes import UnreadableError
from fmcore.intake.reading import How, channels_of, read_image
from fmcore.intake.walk import shown


class Reader(NamedTuple):
    """How the files of folders that are compared are read, so that equal ones are read equally."""

    how: How
    levels: Levels


def reader_of(paths: Sequence[Path], channels: int, like: Mapping[str, Any] | None = None) -> Reader:
    """The reader of all files that are compared; `like` is what a manifest says of how the data was read."""
    like = {} if like is None else like
    if not isinstance(like, Mapping) or not isinstance(like.get("background", ""), str):
        raise ArtifactError(f"expected in a manifest's `reading` how its data was read, got {like!r}")
    how = How(channels, background=like.get("background", "white"))
    return Reader(how, Levels(paths, how, like.get("levels")))


class Folder:
    """A folder of images that is scored, or compared with.

    Main arguments:
        root: the folder.

    It may be compared with the images of another one, `against`, once these were read. Its `files` are in a fixed
    random order: folders are often sorted by class, while error bars are made of groups of neighbours, and what
    needs kernels or a part of the images takes the first.

    Raises:
        DataError: if there is none, or no image in it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root, self._part = root, images_in(root)
        self._tally = Tally(self._part.base)
        self.seen: Counter[bytes] = Counter()  # digests of the images that were read
        self.against: Folder | None = None
        order = torch.randperm(len(self._part.images), generator=generator(0, "evaluate/files"))
        self.files = [self._part.images[i] for i in order.tolist()]

    def images(self, shape: tuple[int, ...], reader: Reader, count: int | None = None) -> Iterator[Tensor]:
        """Batches of its first images, which `notes` then tells of; see `folder_images`."""
        for batch in folder_images(self.files[:count], shape, reader=reader, tally=self._tally):
            self.seen.update(blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in batch)
            yield batch

    def notes(self, reader: Reader) -> list[str]:
        """What was left out or done to its images, and how many are there twice, a line each."""
        told = [*found_notes(self._part), *self._tally.notes(reader.how, reader.levels.white)]
        total = self.seen.total()
        if copies := total - len(self.seen):
            told.append(f"{copies} of {total} are copies of others, pixel by pixel: no error below knows of that")
        if self.against and (shared := (self.seen & self.against.seen).total()):
            told.append(
                f"{shared} of {total} lie in {shown(str(self.against.root))}, too: distances and errors take "
                "images as drawn apart, so they mean little"
            )
        return [f"{shown(str(self.root))}: {line}" for line in told]


def folder_shape(paths: Sequence[Path]) -> tuple[int, ...]:
    """The shape (C, H, W) that the images should have: the size of the first, in colour if any is.

    Raises:
        DataError: if the first cannot be read.
    """

    def channels(path: Path) -> int:
        try:
            return channels_of(path)
        except UnreadableError:  # named when it is read
            return 1

    with ThreadPoolExecutor(cores()) as pool:
        how = How(max(pool.map(channels, paths)))
    try:
        return tuple(read_image(paths[0], how, Levels(paths[:1], how)).pixels.shape)
    except UnreadableError as error:
        raise DataError(f"{shown(str(paths[0]))} cannot be read: {error}") from None


def folder_images(
    paths: Sequence[Path],
    shape: tuple[int, ...] | None,
    batch: int = 500,
    reader: Reader | None = None,
    tally: Tally | None = None,
) -> Iterator[UInt8[Tensor, "N C H W"]]:
    """Images in batches, not resized.

    Main arguments:
        shape: (C, H, W) they must have; that of the first, in colour if any is, if None.
        reader: of these files unless given.
        tally: counts what was done to them.

    Raises:
        DataError: that names the first file which cannot be read or differs in size or channels.
    """
    shape = shape or folder_shape(paths)
    reader = reader or reader_of(paths, shape[0])
    found = []
    for path, read in zip(paths, read_images(paths, *reader), strict=True):
        if isinstance(read, UnreadableError):
            raise DataError(f"{shown(str(path))} cannot be read: {read}")
        if read.pixels.shape != shape:
            raise DataError(
                f"{shown(str(path))}: expected images of shape {shape} (channels, height, width), "
                f"got {read.pixels.shape}"
            )
        if tally:
            tally.add(path, read)
        found.append(read.pixels)
        if len(found) == batch:
            yield torch.from_numpy(np.stack(found))
            found = []
    if found:
        yield torch.from_numpy(np.stack(found))
