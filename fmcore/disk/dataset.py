"""A data set as tensors, and the folder that the other stages read it from.

The folder holds `data.safetensors` and `manifest.json`, which comes last: a folder with one is complete.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors

PIXEL = 1 / 127.5  # between 8-bit levels, in [-1, 1]


class DataError(ValueError):
    """Data that is missing or cannot be read; the message names the setting or the file."""


class Dataset(NamedTuple):
    """A loaded data set.

    Main arguments:
        x1: what to train on: images (N, C, H, W), float32 in [-1, 1] or 8-bit pixels, or points (N, 2) float32.
        label: classes 0..num_classes-1 of x1, or None.
        num_classes: None if there are no classes.
        reference: what generated samples are compared with: all training images, or points drawn separately.
        bin_width: distance in x1 between neighbouring grey levels, None for points.
        names: of the classes, None if they have none.
        about: what was done to it when it was read, as JSON, for the manifest.
        beside: what lay beside it and was left out, as JSON; not kept here, since it does not change the data.
        notes: both in words, for whoever reads it in.
    """

    x1: Tensor
    label: Tensor | None
    num_classes: int | None
    reference: Tensor
    bin_width: float | None = None
    names: tuple[str, ...] | None = None
    about: Mapping[str, Any] | None = None
    beside: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x1.shape[1:])


def save_dataset(folder: Path, data: Dataset, manifest: Mapping[str, Any]) -> None:
    """Writes a data set; a reference that is the training data itself is written once."""
    tensors = {"x1": data.x1}
    if data.label is not None:
        tensors["label"] = data.label
    if data.reference is not data.x1:
        tensors["reference"] = data.reference.clone()  # safetensors refuses what shares memory
    write_tensors(folder / "data.safetensors", tensors)
    about: dict[str, Any] = {
        "num_classes": data.num_classes,
        "bin_width": data.bin_width,
        "shape": list(data.shape),
    }
    about |= {"count": len(data.x1), "sha256": sha256(folder / "data.safetensors")}
    about |= {} if data.names is None else {"classes": list(data.names)}
    about |= {} if data.about is None else {"about": data.about}
    write_json(folder / "manifest.json", {**manifest, **about})


def load_dataset(folder: Path) -> Dataset:
    """Reads what `save_dataset` wrote; an `ArtifactError` names what is missing or damaged."""
    manifest, tensors = read_json(folder / "manifest.json"), read_tensors(folder / "data.safetensors")
    try:
        x1 = tensors["x1"]
        reference = tensors.get("reference", x1)
        names = tuple(manifest["classes"]) if "classes" in manifest else None
        kept = (names, manifest.get("about"))
        return Dataset(x1, tensors.get("label"), manifest["num_classes"], reference, manifest["bin_width"], *kept)
    except KeyError as error:
        raise ArtifactError(f"{folder}: expected a data set, got one without {error}") from None
