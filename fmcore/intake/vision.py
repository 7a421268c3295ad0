"""Any data set of torchvision, by the name of its class."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fmcore.disk.dataset import DataError, Dataset
from fmcore.flow.errors import first_line
from fmcore.intake.pictured import Pictures, Steps, with_classes
from fmcore.intake.planes import Stored
from fmcore.intake.split import held_out

PICKLED = ("LSUN", "LSUNClass")  # which unpickle a file of their folder
INVENTED = ("VisionDataset", "FakeData")  # which read nothing from the disk
CALLED = ("transform", "target_transform", "transforms", "loader", "is_valid_file")  # options that are functions
UNREAD = object()  # the target of a sample that a stopped run had read


@dataclass(frozen=True)
class Torchvision(Pictures):
    """A data set of torchvision that lies on disk; it is not downloaded.

    Main arguments:
        dataset: its class, e.g. SVHN.
        root: its folder.
        options: what else its class is called with, e.g. {split: train}.

    How the images are read is said in `Pictures`.
    """

    dataset: str
    root: str
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    name: Literal["torchvision"] = "torchvision"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "download" in self.options or "root" in self.options:
            raise ValueError("options: root has a key of its own, and nothing is downloaded; expected neither")
        if called := [key for key in CALLED if key in self.options]:
            raise ValueError(f"options: {called[0]} is a function, which cannot be given; expected none")

    def loading(self, scratch: Path | None = None) -> Steps[Dataset]:
        """The data set, step by step."""
        found = self._opened()
        targets: list[Any] = [UNREAD] * len(found)
        files = [Stored(f"sample {i}", partial(_as_png, found, targets, i)) for i in range(len(found))]
        held, told = held_out(self.held_out, len(files))
        data = (yield from self.decoded(files, held, scratch=scratch)).dataset(told)
        targets = [found[i][1] if target is UNREAD else target for i, target in enumerate(targets)]
        if not all(isinstance(target, int) and target >= 0 for target in targets):
            kind = type(targets[0]).__name__
            return data._replace(notes=(*data.notes, f"no classes: {self.dataset} has targets of type {kind}"))
        label = torch.tensor(targets)
        names = [str(name) for name in getattr(found, "classes", None) or range(int(label.max()) + 1)]
        if int(label.max()) >= len(names):
            names = [str(i) for i in range(int(label.max()) + 1)]
        return with_classes(data, label[~held], names)

    def _opened(self) -> Any:
        import torchvision

        kind = getattr(torchvision.datasets, self.dataset, None)
        if not (isinstance(kind, type) and issubclass(kind, torchvision.datasets.VisionDataset)):
            raise DataError(f"data.dataset: torchvision.datasets has no data set {self.dataset!r}")
        if self.dataset in PICKLED:
            raise DataError(f"data.dataset: {self.dataset} unpickles a file, which could run what is in it")
        if self.dataset in INVENTED:
            raise DataError(f"data.dataset: {self.dataset} reads no images from the disk")
        if not Path(self.root).is_dir():
            raise DataError(f"data.root: no folder {self.root!r}; expected torchvision's layout there")
        try:
            found = kind(self.root, **self.options)
            count = len(found)
        except ImportError as error:
            raise DataError(
                f"data.dataset: {self.dataset} needs what is not installed: {first_line(error)}"
            ) from None
        except Exception as error:  # its classes raise what they meet
            line = first_line(error)
            raise DataError(f"data.root: {self.dataset} could not be read from {self.root!r}: {line}") from None
        if not count:
            raise DataError(f"data.root: {self.dataset} in {self.root!r} holds no samples")
        return found


def _as_png(found: Any, targets: list[Any], i: int) -> bytes:
    """A sample's image as a file, which loses nothing; its target goes into its place."""
    from PIL import Image

    image, targets[i] = found[i]
    if not isinstance(image, Image.Image):
        return b""  # refused as no image, by its number
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
