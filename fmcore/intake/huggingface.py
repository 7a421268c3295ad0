"""Data sets of Hugging Face that lie on disk, through `datasets`: nothing is downloaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import DataError, Dataset
from fmcore.flow.errors import one_line
from fmcore.intake.pictured import Pictures, Steps, with_classes
from fmcore.intake.planes import Stored, UnreadableError
from fmcore.intake.split import held_out
from fmcore.intake.walk import natural, shown

PARQUET = ".parquet"


@dataclass(frozen=True)
class HuggingFace(Pictures):
    """A data set with a column of images.

    Main arguments:
        root: the folder that `save_to_disk` wrote, or a .parquet file, or a folder of them.
        split: which part, if it has several, e.g. train.
        image: the column with the images.
        label: the column with the classes, None for none.
        group: the column with what must not lie on both sides of the split, e.g. patients, None for none.

    How the images are read is said in `Pictures`. Instead of an image a row may name a file below `root`.
    """

    root: str
    split: str = "train"
    image: str = "image"
    label: str | None = None
    group: str | None = None
    name: Literal["hf"] = "hf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None and not self.held_out:
            raise ValueError("group is for the split, so held_out must be above 0, got 0")

    def loading(self, scratch: Path | None = None) -> Steps[Dataset]:
        """The data set, step by step."""
        found = self._opened()
        images = found.select_columns([self.image])  # so that no row decodes the images of other columns
        below = _folder(Path(self.root))
        files = [Stored(f"row {i}", partial(_encoded, images, self.image, below, i)) for i in range(len(found))]
        groups = None if self.group is None else list(map(str, _told(found, "group", self.group)))
        classes = None if self.label is None else self._classes(found, self.label)
        held, told = held_out(self.held_out, len(files), groups, str(self.group))
        data = (yield from self.decoded(files, held, scratch=scratch)).dataset(told)
        if classes is None:
            return data
        label, names = classes
        return with_classes(data, label[~held], names)

    def _opened(self) -> Any:
        """The split, its images as they are encoded."""
        datasets, root = _library(), Path(self.root)
        if not root.exists():
            raise DataError(
                f"data.root: no file or folder {self.root!r}; expected what save_to_disk wrote, or .parquet"
            )
        try:
            parts = _splits(root)
            if parts is None:
                found = datasets.load_from_disk(self.root)
            elif self.split in parts:
                found = datasets.load_dataset("parquet", data_files=parts[self.split], split="train")
            else:
                raise DataError(f"data.split: {self.root} holds {', '.join(parts)}, got {self.split!r}")
        except DataError:
            raise
        except Exception as error:  # readers raise what they like
            reason = one_line(error)
            raise DataError(f"data.root: {self.root} cannot be read: {reason}") from None
        if isinstance(found, Mapping):
            if self.split not in found:
                raise DataError(f"data.split: {self.root} holds {', '.join(found)}, got {self.split!r}")
            found = found[self.split]
        kinds = found.features
        for key, column in (("image", self.image), ("label", self.label), ("group", self.group)):
            if column is not None and column not in kinds:
                raise DataError(f"data.{key}: {self.root} has the columns {', '.join(kinds)}, got {column!r}")
        if not isinstance(kinds[self.image], datasets.Image):
            raise DataError(f"data.image: expected a column of images, {self.image} holds {kinds[self.image]}")
        if not len(found):
            raise DataError(f"data.root: {self.root} holds no rows")
        return found.cast_column(self.image, datasets.Image(decode=False))

    def _classes(self, found: Any, label: str) -> tuple[Tensor, Sequence[str]]:
        """The class of each row and the names: the data set's own, or what stands there, in natural order."""
        kind, values = found.features[label], _told(found, "label", label)
        if names := getattr(kind, "names", None):
            if wrong := [i for i, value in enumerate(values) if not 0 <= value < len(names)]:
                raise DataError(
                    f"data.label: row {wrong[0]} of {label} holds {values[wrong[0]]}, expected one of its "
                    f"{len(names)} classes"
                )
            return torch.tensor(values), names
        if not all(isinstance(value, str | int) for value in values):
            raise DataError(f"data.label: expected a column of classes, {label} holds {kind}")
        texts = [str(value) for value in values]
        order = sorted(set(texts), key=natural)
        index = {text: i for i, text in enumerate(order)}
        return torch.tensor([index[text] for text in texts]), order


def _library() -> Any:
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    try:
        import datasets
    except ImportError:
        raise DataError("data.name: hf needs datasets: pip install 'fmcore[hf]'") from None
    return datasets


def _splits(root: Path) -> dict[str, list[str]] | None:
    """The Parquet files of each split, as the hub names them (train-00000-of-00002); None if there are none."""
    files = [root] if root.is_file() else sorted(root.rglob(f"*{PARQUET}"), key=lambda path: natural(str(path)))
    if root.is_file() and root.suffix != PARQUET:
        raise DataError(f"data.root: expected a folder or a file ending in {PARQUET}, got {str(root)!r}")
    splits: dict[str, list[str]] = {}
    for path in files:
        splits.setdefault(path.stem.partition("-")[0], []).append(str(path))
    if root.is_file():  # whose name says nothing
        return {name: [str(root)] for name in ("train", *splits)}
    return splits or None


def _told(found: Any, key: str, column: str) -> list[Any]:
    """The class or group of each row; a DataError if it is no word or number, or if a row has none."""
    from datasets import ClassLabel, Value

    kind = found.features[column]
    if not isinstance(kind, ClassLabel | Value) or kind.dtype in ("binary", "large_binary"):
        raise DataError(f"data.{key}: expected whole numbers or names, {column} holds {kind}")
    values = list(found[column])
    # -1 stands for a class that is not known.
    void = ("", -1) if key == "label" or isinstance(kind, ClassLabel) else ("",)
    if holes := [i for i, value in enumerate(values) if value is None or value != value or value in void]:
        what = {"label": "class"}.get(key, key)
        raise DataError(
            f"data.{key}: {len(holes)} of {len(values)} rows have no {what}, the first is row {holes[0]}"
        )
    return values


def _folder(root: Path) -> Path:
    """Where files lie that rows may name: whoever wrote the rows must not choose among all of the disk's."""
    real = root.resolve()
    return real.parent if real.is_file() else real


def _encoded(found: Any, column: str, below: Path, row: int) -> bytes:
    """A row's image as a file: what lies in the row, or what it names below a folder."""
    value = found[row][column]
    if value is None:
        return b""  # refused as no image, by its row
    inside: bytes | None = value["bytes"]
    named: str | None = value["path"]
    if inside is not None:
        return inside
    if not named:
        raise UnreadableError("holds neither an image nor the path of one")
    path = (below / named).resolve()
    if not path.is_relative_to(below):
        raise UnreadableError(f"names {shown(named)}, which does not lie below {shown(str(below))}")
    if not path.is_file():
        raise UnreadableError(f"names {shown(named)}, which is no file")
    return path.read_bytes()
