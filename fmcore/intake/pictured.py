"""What data sets of images share: the size and form they are brought to, and their classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import DataError, Dataset
from fmcore.intake.decoding import Levels, read_images
from fmcore.intake.planes import DEEP, ImageFile, UnreadableError
from fmcore.intake.reading import Fit, How
from fmcore.intake.report import Tally, listed
from fmcore.intake.walk import shown

NAMED_BAD_FILES = 20


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How image files become images of one size.

    Main arguments:
        size: side of square images, or (height, width).
        channels: 1 for grey, 3 for RGB; images of another number of channels are TIFFs that have as many.
        fit: how an image of another form is brought to the size: the larger part is cropped, the smaller one
            padded with the background, or both sides are stretched.
        background: what transparency is laid on, a colour as PIL reads it. White, as pages are: most drawings and
            cut-out products are made for it, and dark lines on nothing would vanish on black.
        levels: value that is white in images of 16 bits a channel; auto: the largest of as many bits as are used.
    """

    size: int | tuple[int, int]
    channels: int = 3
    fit: Fit = "crop"
    background: str = "white"
    levels: int | Literal["auto"] = "auto"

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

    def decoded(
        self, files: Sequence[ImageFile], base: Path | None = None
    ) -> tuple[Tensor, dict[str, Any], tuple[str, ...]]:
        """The images (N, C, H, W) uint8, what was done to them as data, and in words.

        Raises:
            DataError: that lists those that cannot be read.
        """
        how = How(self.channels, self.sides, self.fit, self.background)
        levels = Levels(files, how, None if self.levels == "auto" else self.levels)
        x1 = torch.empty((len(files), *self.shape), dtype=torch.uint8)
        rows, tally, bad = x1.numpy(), Tally(base), []
        for i, read in enumerate(read_images(files, how, levels)):
            if isinstance(read, UnreadableError):
                bad.append(f"{_whole(files[i])}: {read}")
            else:
                rows[i] = read.pixels
                tally.add(files[i], read)
        if bad:
            named = "; ".join(bad[:NAMED_BAD_FILES])
            raise DataError(f"data.root: {len(bad)} of {len(files)} images cannot be read: {named}")
        return x1, tally.about(how, levels.white), tuple(tally.notes(how, levels.white))


def _whole(file: ImageFile) -> str:
    return shown(str(file)) if isinstance(file, Path) else file.name


def with_classes(data: Dataset, label: Tensor, names: Sequence[str]) -> Dataset:
    """A data set with its classes, how many of each there are, and a line that says so."""
    counts = torch.bincount(label, minlength=len(names)).tolist()
    line = listed([f"{name} ({n})" for name, n in zip(names, counts, strict=True)])
    return data._replace(
        label=label,
        num_classes=len(names),
        names=tuple(names),
        about={**(data.about or {}), "class_counts": counts},
        notes=(*data.notes, f"classes: {line}"),
    )
