"""What data sets of images share: the size and form they are brought to, and their classes."""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from fmcore.disk.dataset import PIXEL, DataError, Dataset
from fmcore.disk.files import ArtifactError, flush, mapped
from fmcore.disk.kept import are_whole, keep, kept, with_block
from fmcore.intake.decoding import Levels, read_images
from fmcore.intake.notes import Tally, classes_note
from fmcore.intake.planes import DEEP, ImageFile, UnreadableError
from fmcore.intake.reading import Fit, How
from fmcore.intake.walk import shown

NAMED_BAD_FILES = 20
READ = "read.json"  # in the scratch folder, beside the images
TOLD, SAVED_SECONDS = 256, 5.0  # images from one step to the next, and seconds between two savings

T = TypeVar("T")
Steps = Generator[tuple[int, int], None, T]  # each says how many of how many images are read


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
        held_out: share of the images (of their groups, if there are any) that nothing is trained on. Generated
            samples are compared with these, too.
    """

    size: int | tuple[int, int]
    channels: int = 3
    fit: Fit = "crop"
    background: str = "white"
    levels: int | Literal["auto"] = "auto"
    held_out: float = 0.0

    def __post_init__(self) -> None:
        from PIL import ImageColor

        if min(self.sides) < 4:
            raise ValueError(f"size must be at least 4 pixels, got {self.size}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.levels != "auto" and not 1 <= self.levels <= DEEP:
            raise ValueError(f"levels must be auto or a value in [1, {DEEP}] that is white, got {self.levels}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if getattr(self, "group", None) is not None and not self.held_out:
            raise ValueError("group is for the split, so held_out must be above 0, got 0")
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
        """(N, channels, height, width) uint8; a DataError lists what cannot be read."""
        return ended(self.loading())

    def loading(self, scratch: Path | None = None) -> Steps[Dataset]:
        """`load`, step by step; with `scratch` in a folder, as `decoded` says."""
        raise NotImplementedError

    def decoded(
        self, files: Sequence[ImageFile], held: Tensor, base: Path | None = None, scratch: Path | None = None
    ) -> Steps["Decoded"]:
        """The images, but for those that are held out, and those.

        Main arguments:
            held: which of the files are held out (N,).
            base: the folder that names are seen from.

        With a folder `scratch` the images lie in files there instead of in memory. A stopped run goes on from
        them, provided that the files are the same.

        Raises:
            DataError: that lists those that cannot be read.
        """
        how = How(self.channels, self.sides, self.fit, self.background)
        shapes = {"x1": (int((~held).sum()), *self.shape), "held_out": (int(held.sum()), *self.shape)}
        x1, held_out = (_room(name, shape, scratch) for name, shape in shapes.items())
        images = _Images(x1, held_out, held)
        so_far = _SoFar.found(scratch, images, base, None if self.levels == "auto" else self.levels)
        places = torch.where(held, held.cumsum(0), (~held).cumsum(0)).sub(1).numpy()
        is_held, trained, tested = held.numpy(), x1.numpy(), held_out.numpy()
        levels = Levels(files, how, so_far.white)
        first, saved = so_far.tally.count + len(so_far.bad), time.monotonic()
        yield first, len(files)
        for i, read in enumerate(read_images(files[first:], how, levels), first):
            if isinstance(read, UnreadableError):
                so_far.bad.append(f"{_whole(files[i])}: {read}")
            else:
                (tested if is_held[i] else trained)[places[i]] = read.pixels
                so_far.tally.add(files[i], read)
            if (i + 1) % TOLD == 0:
                so_far.white = levels.white
                if scratch and time.monotonic() > saved + SAVED_SECONDS:
                    so_far.save(scratch, images)
                    saved = time.monotonic()
                yield i + 1, len(files)
        if bad := so_far.bad:
            so_far.forget(scratch)  # they may be readable next time
            named = "; ".join(bad[:NAMED_BAD_FILES])
            raise DataError(f"data.root: {len(bad)} of {len(files)} images cannot be read: {named}")
        yield len(files), len(files)
        about = so_far.tally.about(how, levels.white) | ({"held_out": len(held_out)} if len(held_out) else {})
        return Decoded(x1, held_out if len(held_out) else None, about, so_far.tally.notes(how, levels.white))


class Decoded(NamedTuple):
    """Images as they were read.

    Main arguments:
        x1: those to train on, (N, C, H, W) uint8.
        held_out: the others, None if there are none.
        about: what was done to them, as JSON.
        notes: the same in words.
    """

    x1: Tensor
    held_out: Tensor | None
    about: dict[str, Any]
    notes: list[str]

    def dataset(self, notes: Sequence[str] = (), beside: Mapping[str, Any] | None = None) -> Dataset:
        """As a data set without classes; `notes` are told first."""
        told = (*notes, *self.notes)
        return Dataset(
            self.x1,
            None,
            None,
            self.x1,
            PIXEL,
            about=self.about,
            beside=beside,
            notes=told,
            held_out=self.held_out,
        )


def _room(name: str, shape: tuple[int, ...], scratch: Path | None) -> Tensor:
    """Where images go: into memory, or into a file."""
    if scratch is None or not shape[0]:
        return torch.empty(shape, dtype=torch.uint8)
    return mapped(scratch / name, shape, torch.uint8)


class _Images(NamedTuple):
    """Where images lie: those to train on, those held out, and which of the files are held out."""

    x1: Tensor
    held_out: Tensor
    held: Tensor

    def filled(self, done: int) -> dict[str, tuple[Tensor, int]]:
        """The images by the name of their file, and how many of them are read once `done` files are."""
        held = int(self.held[:done].sum())
        return {"x1": (self.x1, done - held), "held_out": (self.held_out, held)}


@dataclass
class _SoFar:
    """What is known of the images that were read; `blocks` has checksums of them, by the name of their file."""

    tally: Tally
    white: int | None
    bad: list[str] = field(default_factory=list)
    blocks: dict[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many files were read."""
        return self.tally.count + len(self.bad)

    def save(self, scratch: Path, images: _Images) -> None:
        for name, (rows, count) in images.filled(self.done).items():
            if len(rows):
                flush(scratch / name)  # first: a count must never be ahead of the images on the disk
            self.blocks[name] = with_block(self.blocks.get(name, ()), rows, count)
        about = {"bad": self.bad, "tally": self.tally.kept(), "white": self.white, "blocks": self.blocks}
        keep(scratch / READ, about)

    def forget(self, scratch: Path | None) -> None:
        if scratch:
            (scratch / READ).unlink(missing_ok=True)

    @classmethod
    def found(
        cls,
        scratch: Path | None,
        images: _Images,
        base: Path | None,
        white: int | None,
    ) -> "_SoFar":
        """What was saved, if the images are those it was saved with; else nothing, so that all are read again."""
        if scratch is None or not (scratch / READ).exists():
            return cls(Tally(base), white)
        try:
            saved, found = kept(scratch / READ), cls(Tally(base), white)
            found.tally.take_up(saved["tally"])
            found.bad, found.white, found.blocks = list(map(str, saved["bad"])), saved["white"], saved["blocks"]
            fits = 0 <= found.done <= len(images.held) and (found.white is None or 1 <= found.white <= DEEP)
            filled = images.filled(found.done) if fits else {}
            if fits and all(are_whole(found.blocks[name], *rows) for name, rows in filled.items()):
                return found
        except (ArtifactError, KeyError, TypeError, ValueError):
            pass
        return cls(Tally(base), white)


def ended(steps: Steps[T]) -> T:
    """What steps lead to, once all are done."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def _whole(file: ImageFile) -> str:
    return shown(str(file)) if isinstance(file, Path) else file.name


def with_classes(data: Dataset, label: Tensor, names: Sequence[str]) -> Dataset:
    """A data set with its classes, how many of each there are, and a line that says so."""
    counts = torch.bincount(label, minlength=len(names)).tolist()
    return data._replace(
        label=label,
        num_classes=len(names),
        names=tuple(names),
        about={**(data.about or {}), "class_counts": counts},
        notes=(*data.notes, classes_note(names, counts)),
    )
