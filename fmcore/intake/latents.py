"""Images as the latents of an autoencoder, encoded once as they are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log10, prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.disk.dataset import DataError, Dataset, Encoding, Units
from fmcore.disk.files import ArtifactError
from fmcore.flow.pixels import floats, quantise
from fmcore.flow.rng import generator
from fmcore.intake.arrays import Arrays
from fmcore.intake.huggingface import HuggingFace
from fmcore.intake.images import Images
from fmcore.intake.known import CIFAR10, MNIST, Digits, FashionMNIST
from fmcore.intake.vision import Torchvision
from fmcore.models.autoencoder import Autoencoder, Decoder, form_of, read_autoencoder

Pictured = Digits | MNIST | FashionMNIST | CIFAR10 | Images | Arrays | HuggingFace | Torchvision
TOGETHER = 500  # images
DECODED = 500  # images that are decoded again, to say how much is lost
FLAT = 1e-12  # a variance below which a channel is the same in all images
ROUNDING = 1 / 12  # mean squared error of rounding to grey levels: what is below cannot be told from it


@dataclass(frozen=True)
class Latents:
    """Latents of images by a diffusers AutoencoderKL.

    Main arguments:
        images: which images, as `data` names them where they are not encoded.
        autoencoder: the folder with its config.json and weights, or one with these in its subfolder `vae`.
        shape: of one latent, (channels, height, width).
    """

    images: Pictured
    autoencoder: str
    shape: tuple[int, ...]
    name: Literal["latents"] = "latents"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be that of a latent, [C, H, W], got {list(self.shape)}")
        if isinstance(self.images, Arrays) and self.images.values != "pixels":
            raise ValueError(f"images: arrays are images with values: pixels, got {self.images.values}")

    def check(self) -> None:
        """Compares the autoencoder with the images and the shape; it reads neither weights nor images.

        Raises:
            DataError: if it is missing, is no AutoencoderKL, or does not take these images or make this shape.
        """
        try:
            made = form_of(self.autoencoder).latent(self.images.shape)
        except (ArtifactError, ValueError) as error:
            at = "" if isinstance(error, ArtifactError) else f"{self.autoencoder}: "
            raise DataError(f"data.autoencoder: {at}{error}") from None
        if made != self.shape:
            sides = "x".join(map(str, self.images.shape))
            raise DataError(
                f"data.shape: expected {list(made)}, which {self.autoencoder} makes of images of {sides}, got "
                f"{list(self.shape)}"
            )

    def opened(self, device: torch.device | str = "cpu") -> Autoencoder:
        """The autoencoder; a DataError as by `check`."""
        self.check()
        try:
            return read_autoencoder(self.autoencoder, device)
        except ArtifactError as error:
            raise DataError(f"data.autoencoder: {error}") from None

    def load(self) -> Dataset:
        """(N, *shape) float32, standardised, with their images; a DataError as by `check`, or of the images."""
        autoencoder, images = self.opened(), self.images.load()
        return as_latents(images, torch.cat(list(encoded(autoencoder, images.x1))), autoencoder)


def encoded(autoencoder: Autoencoder, images: Tensor) -> Iterator[Float[Tensor, "n c h w"]]:
    """The latents of images, uint8 or in [-1, 1], some at a time, on the CPU."""
    for first in range(0, len(images), TOGETHER):
        yield autoencoder.encoded(floats(images[first : first + TOGETHER])).cpu()


def as_latents(
    data: Dataset,
    raw: Float[Tensor, "N c h w"],
    autoencoder: Autoencoder,
    room: Float[Tensor, "N c h w"] | None = None,
) -> Dataset:
    """The data set of the latents of another one's images, which stay as what samples are compared with.

    Main arguments:
        raw: the latents as they were encoded.
        room: where they go standardised, e.g. in a file; None for memory.

    Each channel gets mean 0 and deviation 1. (The `scaling_factor` of the config is for the images that the
    autoencoder was made for, and one that nobody measured says what Stable Diffusion's does.)

    Raises:
        DataError: if a latent is not finite.
    """
    units, bad = units_of(raw)
    if bad:
        raise DataError(
            f"data.autoencoder: latents of {len(bad)} of {len(raw)} images are not finite, the first is of image "
            f"{bad[0]}"
        )
    latents = torch.empty_like(raw) if room is None else room
    mean, std = (torch.tensor(of, dtype=torch.float64).view(1, -1, 1, 1) for of in units[:2])
    for part, place in zip(torch.split(raw, TOGETHER), torch.split(latents, TOGETHER), strict=True):
        place.copy_((part.double() - mean) / std)
    pixels = data.x1 if data.x1.dtype == torch.uint8 else quantise(data.x1)
    encoding = Encoding(autoencoder.digest, tuple(pixels.shape[1:]), units)
    lost, line = _lost(Decoder(autoencoder, encoding), latents, pixels)
    shrunk = prod(pixels.shape[1:]) / prod(latents.shape[1:])
    return data._replace(
        x1=latents,
        reference=pixels,
        bin_width=None,
        encoding=encoding,
        about={**(data.about or {}), "encoded": lost},
        notes=(
            f"a latent of shape {tuple(latents.shape[1:])} has a number for every {shrunk:.3g} of its image",
            line,
        ),
    )


def units_of(latents: Float[Tensor, "N c h w"]) -> tuple[Units, list[int]]:
    """Mean and deviation of each channel, 1 if it never changes, and which latents are not finite."""
    bad: list[int] = []
    centre = latents[:TOGETHER].double().mean((0, 2, 3), keepdim=True)
    total, square, count = torch.zeros_like(centre).flatten(), torch.zeros_like(centre).flatten(), 0
    for part in torch.split(latents, TOGETHER):
        z = part.double() - centre
        bad += [count + i for i in (~part.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()]
        total, square = total + z.sum((0, 2, 3)), square + z.square().sum((0, 2, 3))
        count += len(z)
    values = count * prod(latents.shape[2:])
    variance = square / values - (total / values).square()
    std = torch.where(variance > FLAT, variance.clamp_min(FLAT).sqrt(), torch.ones_like(variance))
    return Units(tuple((total / values + centre.flatten()).tolist()), tuple(std.tolist())), bad


def _lost(decoder: Decoder, latents: Tensor, pixels: Tensor) -> tuple[dict[str, Any], str]:
    """How far images that are decoded again are from what they were, as data and in words."""
    rows = torch.randperm(len(pixels), generator=generator(0, "data/decoded"))[:DECODED]
    decoded = torch.cat([decoder(part, "fp32").cpu() for part in torch.split(latents[rows], TOGETHER)])
    if bad := int((~decoded.isfinite().flatten(1).all(1)).sum()):
        raise DataError(f"data.autoencoder: {bad} of {len(rows)} images are not finite when decoded again")
    off = quantise(decoded).float() - pixels[rows].float()
    levels, square = float(off.abs().mean()), float(off.square().mean())
    psnr = 10 * log10(255**2 / max(square, ROUNDING))
    lost = {"images": len(rows), "grey_levels": float(f"{levels:.4g}"), "psnr": float(f"{psnr:.4g}")}
    line = (
        f"decoded again, {len(rows)} of {len(pixels)} images are {levels:.3g} of 255 grey levels off on average "
        f"(PSNR {psnr:.1f} dB): samples can show no more of the data than that"
    )
    return lost, line
