"""Folders of images as a data set, brought to one size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import PIXEL, DataError, Dataset
from fmcore.intake.pictured import NAMED_BAD_FILES, Pictures, with_classes
from fmcore.intake.report import beside, found_notes, listed
from fmcore.intake.walk import SUFFIXES, FolderError, Part, found, natural, shown, training_part


@dataclass(frozen=True)
class Images(Pictures):
    """Any folder of images, searched to its depth; if all lie in subfolders, those name the classes.

    Main arguments:
        root: the folder. If `train` and `test` (or `val`) are all that lies at its top, `train` is taken.

    How the images are read is said in `Pictures`.
    """

    root: str
    name: Literal["images"] = "images"

    def load(self) -> Dataset:
        """(N, channels, height, width) uint8; a DataError lists the files that cannot be read."""
        part = self._part()
        x1, done, notes = self.decoded(part.images, part.base)
        names, label, why = classes_of(part)
        about = done | {"part": "" if part.base == part.found.root else shown(part.base.name)}
        notes = (*found_notes(part), *why, *notes)
        data = Dataset(x1, None, None, x1, PIXEL, about=about, beside=beside(part), notes=notes)
        return data if label is None else with_classes(data, label, names)

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
