"""diffusers' AutoencoderKL: images to latents and back (Rombach et al., arXiv:2112.10752).

The latent of an image is the mean of its posterior. Each image is encoded once, so a draw would give it a noise
that stays the same in all of the training, and that the model would learn as a part of the image.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.disk.dataset import Encoding
from fmcore.disk.files import ArtifactError, read_forms, read_json, read_tensors, sha256
from fmcore.flow.errors import one_line
from fmcore.flow.fields import autocast_dtype
from fmcore.models.foreign import WEIGHTS, fill, need_files

KIND = "AutoencoderKL"
FOLDER = "autoencoder"  # the copy of one beside data or weights
PIXELS = 2**19  # of images encoded or decoded together; Stable Diffusion's needs about 4 kB for each
MOST_BLOCKS = 16
SIZES = {  # keys of a config, and the largest number that makes sense
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "block_out_channels"), 2**14),
    **{"layers_per_block": 64, "norm_num_groups": 2**14},
}


class Form(NamedTuple):
    """What an autoencoder takes and makes: latents have `latent_channels`, and sides `factor` times as small."""

    channels: int
    latent_channels: int
    factor: int

    def latent(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latent of an image (C, H, W); a ValueError for one that it does not take."""
        channels, *sides = shape
        if channels != self.channels:
            raise ValueError(f"it takes images of {self.channels} channels, got {channels}")
        if any(side % self.factor for side in sides):
            height, width = sides
            raise ValueError(f"it needs sides divisible by {self.factor}, got {height}x{width}")
        return (self.latent_channels, *(side // self.factor for side in sides))


def autoencoder_files(folder: str | Path) -> tuple[Path, Path]:
    """The config and the weights of an autoencoder: in the folder, or in its subfolder `vae`.

    Raises:
        ArtifactError: that names the file that is missing.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ArtifactError(f"{folder}: no such folder; expected an {KIND} saved by diffusers")
    place = top / "vae" if (top / "vae").is_dir() else top
    found = place / "config.json", place / WEIGHTS
    need_files(found, KIND)
    return found


def form_of(folder: str | Path) -> Form:
    """What the autoencoder in a folder takes and makes. No weight is read, but that all are there is checked.

    Raises:
        ArtifactError: if a file is missing, or describes something else.
    """
    config, weights = autoencoder_files(folder)
    with torch.device("meta"):
        network = _built(config)
    fill(network, read_forms(weights), weights)
    known = network.config
    return Form(known.in_channels, known.latent_channels, _factor(known))


def _factor(config: Any) -> int:
    """Each block but the last halves the sides."""
    return int(2 ** (len(config.block_out_channels) - 1))


def _built(path: Path) -> Any:
    """The network that a config describes, with weights of no meaning."""
    config = read_json(path)
    if config.get("_class_name") != KIND:
        raise ArtifactError(f"{path}: expected an {KIND}, got {config.get('_class_name')}")
    _check_sizes(path, config)
    from diffusers import AutoencoderKL

    try:
        network = AutoencoderKL.from_config(config)
    except Exception as error:  # of a config from anywhere: diffusers raises what it meets
        raise ArtifactError(f"{path}: {type(error).__name__}: {one_line(error)}") from None
    if network.config.in_channels != network.config.out_channels:
        made = f"{network.config.in_channels} and {network.config.out_channels}"
        raise ArtifactError(f"{path}: expected as many out_channels as in_channels, got {made}")
    return network.eval().requires_grad_(False)


def _check_sizes(path: Path, config: dict[str, Any]) -> None:
    """Refuses numbers that no network has, before one of that size is built."""
    for key, most in SIZES.items():
        found = config.get(key, 1)
        values = found if isinstance(found, list) else [found]
        if len(values) > MOST_BLOCKS or not all(type(n) is int and 0 < n <= most for n in values):
            raise ArtifactError(f"{path}: expected for {key} whole numbers from 1 to {most}, got {found!r}")


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder that was read from disk.

    Main arguments:
        network: an AutoencoderKL in evaluation mode.
        digest: SHA-256 of its weights.
    """

    network: Any
    digest: str

    @property
    def factor(self) -> int:
        """How many times the sides of an image are those of its latent."""
        return _factor(self.network.config)

    @torch.no_grad()
    def encoded(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """The latents of images in [-1, 1], in float32 on the network's device."""
        size = max(1, PIXELS // (images.shape[2] * images.shape[3]))
        parts = [self.network.encode(part).latent_dist.mean for part in self._parts(images, size)]
        return torch.cat(parts)

    @torch.no_grad()
    def decoded(self, latents: Float[Tensor, "N c h w"], precision: str = "fp32") -> Float[Tensor, "N C H W"]:
        """Images in [-1, 1], up to what the network makes beyond, in float32 on the network's device."""
        device = self.network.device
        dtype = autocast_dtype(precision, device)
        size = max(1, PIXELS // (latents.shape[2] * latents.shape[3] * self.factor**2))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            parts = [self.network.decode(part).sample.float() for part in self._parts(latents, size)]
        return torch.cat(parts)

    def _parts(self, x: Tensor, size: int) -> Iterable[Tensor]:
        return (part.to(self.network.device) for part in torch.split(x, size))


def read_autoencoder(folder: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder in a folder, in float32. Nothing is fetched and no pickle is read.

    Raises:
        ArtifactError: if a file is missing, or describes something else.
    """
    config, weights = autoencoder_files(folder)
    network = _built(config)
    fill(network, read_tensors(weights), weights)
    return Autoencoder(network.to(device), sha256(weights))


def copy_autoencoder(source: str | Path, target: Path) -> None:
    """Copies the two files of an autoencoder, and nothing else that lies beside them."""
    target.mkdir(parents=True, exist_ok=True)
    for path in autoencoder_files(source):
        shutil.copyfile(path, target / path.name)


@dataclass(frozen=True)
class Decoder:
    """What makes images of a model's samples."""

    autoencoder: Autoencoder
    encoding: Encoding

    def __call__(self, samples: Float[Tensor, "N c h w"], precision: str = "auto") -> Float[Tensor, "N C H W"]:
        """The images in [-1, 1], up to the model's error, on the decoder's device, of standardised latents."""
        return self.autoencoder.decoded(self.encoding.units.restored(samples.float()), precision)


def beside(model: str | Path) -> list[Path]:
    """Where a model's autoencoder is looked for: in its folder, and in the data set that the pipeline made."""
    folder = Path(model).resolve()
    return [folder / FOLDER, folder.parent.parent / "dataset" / FOLDER]


def found_autoencoder(encoding: Encoding, places: Iterable[Path]) -> Path:
    """The first of some places that holds the autoencoder whose latents a model makes.

    Raises:
        ArtifactError: if none does; it names the places and what is there.
    """
    looked = []
    for place in places:
        weights = place / WEIGHTS if (place / WEIGHTS).is_file() else place / "vae" / WEIGHTS
        if not weights.is_file():
            looked.append(f"{place} has none")
        elif (digest := sha256(weights)) != encoding.autoencoder:
            looked.append(f"that in {place} has {digest[:12]}")
        else:
            return place
    raise ArtifactError(
        f"the model's samples are latents, to be decoded by the autoencoder whose {WEIGHTS} has SHA-256 "
        f"{encoding.autoencoder[:12]}, which was not found: {', '.join(looked)}; name its folder (--autoencoder)"
    )


def decoder_of(encoding: Encoding, places: Iterable[Path], device: torch.device | str = "cpu") -> Decoder:
    """The decoder of a model's samples, from the first of some places that holds it.

    Raises:
        ArtifactError: as `found_autoencoder` and `read_autoencoder`.
    """
    return Decoder(read_autoencoder(found_autoencoder(encoding, places), device), encoding)
