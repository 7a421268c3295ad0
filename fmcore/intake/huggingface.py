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
from fmcore.intake.pictured import Pictures, Steps, with_classes
from fmcore.intake.planes import Stored
from fmcore.intake.split import held_out
from fmcore.intake.walk import natural

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

    How the images are read is said in `Pictures`.
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
        """The data set, by and by."""
        found = self._opened()
        files = [Stored(f"row {i}", partial(_encoded, found, self.image, i)) for i in range(len(found))]
        groups = None if self.group is None else [str(value) for value in found[self.group]]
        held, told = held_out(self.held_out, len(files), groups, str(self.group))
        data = (yield from self.decoded(files, held, scratch=scratch)).dataset(told)
        if self.label is None:
            return data
        label, names = self._classes(found)
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
            reason = " ".join(str(error).split()) or type(error).__name__
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

    def _classes(self, found: Any) -> tuple[Tensor, Sequence[str]]:
        """The class of each row and the names: the data set's own, or what stands there, in natural order."""
        kind, values = found.features[self.label], list(found[self.label])
        holes = [i for i, value in enumerate(values) if value is None or value == -1]
        if holes:
            raise DataError(
                f"data.label: {len(holes)} of {len(values)} rows have no class, the first is row {holes[0]}"
            )
        if names := getattr(kind, "names", None):
            return torch.tensor(values), names
        if not all(isinstance(value, str | int) for value in values):
            raise DataError(f"data.label: expected a column of classes, {self.label} holds {kind}")
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


def _encoded(found: Any, column: str, row: int) -> bytes:
    value = found[row][column]
    if value is None:
        return b""  # refused as no image, by its row
    inside: bytes | None = value["bytes"]
    return Path(value["path"]).read_bytes() if inside is None else inside
