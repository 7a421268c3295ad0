"""Folders of images as a data set, brought to one size."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import DataError, Dataset
from fmcore.intake.notes import beside, found_notes, listed
from fmcore.intake.pictured import NAMED_BAD_FILES, Pictures, Steps, with_classes
from fmcore.intake.split import held_out
from fmcore.intake.walk import SUFFIXES, FolderError, Part, found, natural, shown, training_part


@dataclass(frozen=True)
class Images(Pictures):
    """Any folder of images, searched to its depth; if all lie in subfolders, those name the classes.

    Main arguments:
        root: the folder. If `train` and `test` (or `val`) are all that lies at its top, `train` is trained on, and
            what is in the others is held out, unless `held_out` says which share of `train`.
        group: the level of the folders (1: those at the top) of which none may lie on both sides of the split,
            e.g. those of patients. If these are the ones at the top, they are no classes.

    How the images are read is said in `Pictures`.
    """

    root: str
    group: int | None = None
    name: Literal["images"] = "images"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is a level of folders, 1 for those at the top, or null, got {self.group}")

    def loading(self, scratch: Path | None = None) -> Steps[Dataset]:
        """The data set, step by step."""
        part = self._part()
        names, label, why = classes_of(part) if self.group != 1 else ((), None, [])
        if part.held_out and not self.held_out:
            files = part.images + part.held_out
            held = torch.arange(len(files)) >= len(part.images)
            others = ", ".join(f"{name}/" for name in part.left_out if name)
            told = [f"{len(part.held_out)} of {len(files)} are held out: those in {others}"]
            part = replace(part, left_out={name: n for name, n in part.left_out.items() if not name})
            try:
                _refuse_others(part)
            except DataError as error:
                raise DataError(f"data.root: {error}") from None
        else:
            files, (held, told) = part.images, held_out(self.held_out, len(part.images), *self._groups(part))
        read = yield from self.decoded(files, held, part.base, scratch)
        read.about["part"] = "" if part.base == part.found.root else shown(part.base.name)
        data = read.dataset([*found_notes(part), *why, *told], beside(part))
        return data if label is None else with_classes(data, label[~held[: len(label)]], names)

    def _groups(self, part: Part) -> tuple[list[str] | None, str]:
        """Each image's group, and what names them."""
        level = self.group
        if level is None:
            return None, ""
        if outside := [name for name in part.inside if name.count("/") < level]:
            raise DataError(
                f"data.group: {len(outside)} of {len(part.images)} images do not lie in a folder of level "
                f"{level}, e.g. {shown(outside[0])}"
            )
        return ["/".join(name.split("/")[:level]) for name in part.inside], f"level {level} of the folders"

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
    _refuse_others(part)
    if not part.images:
        there = f" ({'; '.join(notes)})" if (notes := found_notes(part)) else ""
        raise DataError(f"no image in {str(root)!r}{there}; expected files ending in {', '.join(SUFFIXES)}")
    return part


def _refuse_others(part: Part) -> None:
    """Refuses what has the name of an image but is none, unless it is left out anyway."""
    left_out = tuple(f"{name}/" for name in part.left_out if name)
    if bad := [line for line in part.found.refused if not line.startswith(left_out)]:
        named = "; ".join(bad[:NAMED_BAD_FILES])
        raise DataError(f"{len(bad)} in {shown(str(part.found.root))} cannot be read: {named}")


def classes_of(part: Part) -> tuple[tuple[str, ...], Tensor | None, list[str]]:
    """The names of the classes, printable and in natural order, and each image's; or no label, and a line why."""
    folders = sorted({name.partition("/")[0] for name in part.inside if "/" in name}, key=natural)
    names = tuple(map(shown, folders))
    stray = [shown(name) for name in part.inside if "/" not in name]
    if stray or len(names) < 2:
        why = [f"no classes: all images lie in {names[0]}/"] if names and not stray else []
        if names and stray:
            why = [f"no classes, since {listed(stray)} lie beside the folders {listed(names)}"]
        return names, None, why
    index = {folder: i for i, folder in enumerate(folders)}
    return names, torch.tensor([index[name.partition("/")[0]] for name in part.inside]), []
