"""Folders of images as a data set, brought to one size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import PIXEL, DataError, Dataset
from fmcore.intake.decoding import Levels, read_images
from fmcore.intake.planes import DEEP, UnreadableError
from fmcore.intake.reading import Fit, How
from fmcore.intake.report import Tally, beside, found_notes, listed
from fmcore.intake.walk import SUFFIXES, FolderError, Part, found, natural, shown, training_part

NAMED_BAD_FILES = 20


@dataclass(frozen=True)
class Images:
    """Any folder of images, searched to its depth; if all lie in subfolders, those name the classes.

    Main arguments:
        root: the folder. If `train` and `test` (or `val`) are all that lies at its top, `train` is taken.
        size: side of square images, or (height, width).
        channels: 1 for grey, 3 for RGB; images of another number of channels are TIFFs that have as many.
        fit: how an image of another form is brought to the size: the larger part is cropped, the smaller one
            padded with the background, or both sides are stretched.
        background: what transparency is laid on, a colour as PIL reads it. White, as pages are: most drawings and
            cut-out products are made for it, and dark lines on nothing would vanish on black.
        levels: value that is white in images of 16 bits a channel; auto: the largest of as many bits as are used.
    """

    root: str
    size: int | tuple[int, int]
    channels: int = 3
    fit: Fit = "crop"
    background: str = "white"
    levels: int | Literal["auto"] = "auto"
    name: Literal["images"] = "images"

    def __post_init__(self) -> None:
        from PIL import ImageColor

        if min(self.sides) < 4:
            raise ValueError(f"size must be at least 4 pixels, got {self.size}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.levels != "auto" and not 1 <= self.levels <= DEEP:
            raise ValueError(f"levels must be auto or a value in [1, {DEEP}] that is white, got {self.levels}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(
                f"background must be a colour, e.g. white, black or '#808080', got {self.background!r}"
            ) from None

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (self.channels, *self.sides)

    def load(self) -> Dataset:
        """(N, channels, height, width) uint8; a DataError lists the files that cannot be read."""
        part = self._part()
        how = How(self.channels, self.sides, self.fit, self.background)
        levels = Levels(part.images, how, None if self.levels == "auto" else self.levels)
        x1 = torch.empty((len(part.images), *self.shape), dtype=torch.uint8)
        rows, tally, bad = x1.numpy(), Tally(part.base), []
        for i, read in enumerate(read_images(part.images, how, levels)):
            path = part.images[i]
            if isinstance(read, UnreadableError):
                bad.append(f"{shown(str(path))}: {read}")
            else:
                rows[i] = read.pixels
                tally.add(path, read)
        if bad:
            named = "; ".join(bad[:NAMED_BAD_FILES])
            raise DataError(f"data.root: {len(bad)} of {len(part.images)} images cannot be read: {named}")
        names, label, why = classes_of(part)
        white = levels.white if tally.done["deep"] else None
        about = tally.about(how, white) | {"part": "" if part.base == part.found.root else shown(part.base.name)}
        notes = (*found_notes(part), *why, *tally.notes(how, white))
        data = Dataset(x1, None, None, x1, PIXEL, about=about, beside=beside(part), notes=notes)
        if label is None:
            return data
        counts = torch.bincount(label).tolist()
        classes = listed([f"{name} ({n})" for name, n in zip(names, counts, strict=True)])
        return data._replace(
            label=label,
            num_classes=len(names),
            names=names,
            about=about | {"class_counts": counts},
            notes=(*notes, f"classes: {classes}"),
        )

    def _part(self) -> Part:
        try:
            return images_in(self.root)
        except DataError as error:
            raise DataError(f"data.root: {error}") from None


def images_in(root: str | Path) -> Part:
    """The images under a folder, in their natural order.

    Raises:
        DataError: if there is no folder, no image in it, one that is no file, or a split that may be classes.
    """
    try:
        part = training_part(found(root))
    except FileNotFoundError:
        raise DataError(f"no folder {str(root)!r}; expected a folder of images") from None
    except NotADirectoryError:
        raise DataError(f"{str(root)!r} is a file; expected a folder of images") from None
    except OSError as error:
        raise DataError(f"{shown(str(root))} cannot be listed: {error.strerror}") from None
    except FolderError as error:
        raise DataError(str(error)) from None
    left_out = tuple(f"{name}/" for name in part.left_out if name)
    if bad := [line for line in part.found.refused if not line.startswith(left_out)]:
        raise DataError(f"{len(bad)} in {shown(str(root))} cannot be read: {'; '.join(bad[:NAMED_BAD_FILES])}")
    if not part.images:
        there = f" ({'; '.join(notes)})" if (notes := found_notes(part)) else ""
        raise DataError(f"no image in {str(root)!r}{there}; expected files ending in {', '.join(SUFFIXES)}")
    return part


def classes_of(part: Part) -> tuple[tuple[str, ...], Tensor | None, list[str]]:
    """The names of the classes, printable and in natural order, and each image's; or no label, and a line why."""
    tops = [path.relative_to(part.base).parts for path in part.images]
    folders = sorted({parts[0] for parts in tops if len(parts) > 1}, key=natural)
    names = tuple(map(shown, folders))
    stray = [shown(parts[0]) for parts in tops if len(parts) == 1]
    if stray or len(names) < 2:
        why = [f"no classes: all images lie in {names[0]}/"] if names and not stray else []
        if names and stray:
            why = [f"no classes, since {listed(stray)} lie beside the folders {listed(names)}"]
        return names, None, why
    index = {folder: i for i, folder in enumerate(folders)}
    return names, torch.tensor([index[parts[0]] for parts in tops]), []
