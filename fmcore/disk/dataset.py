"""A data set as tensors, and the folder that the other stages read it from.

The folder holds `data.safetensors` and `manifest.json`, which comes last: a folder with one is complete.
"""

from collections.abc import Mapping
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors
from fmcore.disk.sums import check, seal

PIXEL = 1 / 127.5  # between 8-bit levels, in [-1, 1]
HASHED = 2 * 2**30  # bytes of data that are compared with their checksum whenever they are loaded: some seconds


class DataError(ValueError):
    """Data that is missing or cannot be read; the message names the setting or the file."""


class Units(NamedTuple):
    """How each column of points, or channel of series and arrays, was standardised.

    Main arguments:
        mean, std: what became 0 and 1, a number for each.
        names: of the columns of a table.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()

    def restored(self, x: Float[Tensor, "N K *D"]) -> Float[Tensor, "N K *D"]:
        """Standardised values as they were: std x + mean."""
        form = (-1, *(1 for _ in x.shape[2:]))
        mean, std = (torch.tensor(of, dtype=torch.float64).view(form).to(x.device) for of in self[:2])
        return (x.double() * std + mean).to(x.dtype)

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """The logarithm of how much larger a volume is in the old units: a density there is that much smaller."""
        return float(torch.tensor(self.std, dtype=torch.float64).log().sum()) * prod(shape[1:])


class Encoding(NamedTuple):
    """How images became the latents that are trained on, and become images again.

    Main arguments:
        autoencoder: SHA-256 of the autoencoder's weights.
        shape: (C, H, W) of an image.
        units: those of the latents, by channel, which were standardised.
    """

    autoencoder: str
    shape: tuple[int, ...]
    units: Units

    def as_json(self) -> dict[str, Any]:
        """What `encoding_from` reads."""
        return {**self._asdict(), "units": self.units._asdict()}


class Dataset(NamedTuple):
    """A loaded data set.

    Main arguments:
        x1: what to train on. Images (N, C, H, W) are float32 in [-1, 1], or 8-bit pixels. Points (N, D), series
            (N, C, L), arrays and latents (N, C, H, W) are float32.
        label: the class of each sample, 0 to num_classes - 1; None if there are no classes.
        num_classes: None if there are no classes.
        reference: what samples are compared with. For images it is x1, for latents the images that were encoded,
            in the order of x1. For points, series and arrays it is what was held out, or x1 if nothing was.
        bin_width: distance in x1 between neighbouring grey levels; None unless x1 are images.
        names: the names of the classes; None if they have none.
        about: what was done to the data when they were read, as JSON. It goes into the manifest.
        beside: what lay beside the data and was left out, as JSON. It does not change the data, so
            `save_dataset` leaves it out.
        notes: the same in words, for the log.
        units: what x1 was before it was standardised; None for images and for sets made by formulas.
        held_out: images that nothing is trained on; samples are compared with them, too. None if there are none.
        encoding: how images became the latents x1; None unless x1 are latents.
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
    units: Units | None = None
    held_out: Tensor | None = None
    encoding: Encoding | None = None

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
        shared = data.reference.untyped_storage().data_ptr() == data.x1.untyped_storage().data_ptr()
        tensors["reference"] = data.reference.clone() if shared else data.reference  # safetensors needs them apart
    if data.held_out is not None:
        tensors["held_out"] = data.held_out
    write_tensors(folder / "data.safetensors", tensors)
    about: dict[str, Any] = {
        "num_classes": data.num_classes,
        "bin_width": data.bin_width,
        "shape": list(data.shape),
    }
    digest = sha256(folder / "data.safetensors")
    about |= {"count": len(data.x1), "sha256": digest}
    about |= {} if data.names is None else {"classes": list(data.names)}
    about |= {} if data.about is None else {"about": data.about}
    about |= {} if data.units is None else {"units": data.units._asdict()}
    about |= {} if data.encoding is None else {"encoding": data.encoding.as_json()}
    write_json(folder / "manifest.json", {**manifest, **about})
    seal(folder, ["data.safetensors", "manifest.json"], {"data.safetensors": digest})


def load_dataset(folder: Path) -> Dataset:
    """Reads what `save_dataset` wrote; an `ArtifactError` names what is missing or damaged.

    Data of more than `HASHED` bytes are mapped without being read, so damage in them is not found here.
    """
    path = folder / "data.safetensors"
    small = path.is_file() and path.stat().st_size <= HASHED
    check(folder, "manifest.json", *([path.name] if small else []))
    manifest, tensors = read_json(folder / "manifest.json"), read_tensors(path)
    try:
        x1 = tensors["x1"]
        reference = tensors.get("reference", x1)
        names = tuple(manifest["classes"]) if "classes" in manifest else None
        return Dataset(
            x1,
            tensors.get("label"),
            manifest["num_classes"],
            reference,
            manifest["bin_width"],
            names=names,
            about=manifest.get("about"),
            units=units_from(manifest.get("units")),
            held_out=tensors.get("held_out"),
            encoding=encoding_from(manifest.get("encoding")),
        )
    except KeyError as error:
        raise ArtifactError(f"{folder}: expected a data set, got one without {error}") from None
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: expected a data set, got one that cannot be read: {error}") from None


def units_from(value: Mapping[str, Any] | None) -> Units | None:
    """Units as they lie in JSON; a ValueError for others."""
    if value is None:
        return None
    mean, std = (tuple(float(number) for number in value[key]) for key in ("mean", "std"))
    names = tuple(str(name) for name in value["names"])
    if len(mean) != len(std) or not all(map(isfinite, mean)) or not all(0 < number < inf for number in std):
        raise ValueError(f"expected as many finite means as positive deviations, got {value}")
    return Units(mean, std, names)


def encoding_from(value: Mapping[str, Any] | None) -> Encoding | None:
    """An encoding as it lies in JSON; a ValueError for others."""
    if value is None:
        return None
    shape, units = tuple(int(side) for side in value["shape"]), units_from(value["units"])
    if units is None or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"expected the shape of images and the units of their latents, got {value}")
    return Encoding(str(value["autoencoder"]), shape, units)
