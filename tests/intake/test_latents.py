"""Images as latents: encoded as they are read, standardised, with the images kept and the loss said."""

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import random_vae
from fmcore.disk.dataset import DataError, load_dataset, save_dataset
from fmcore.flow.pixels import dequantise, quantise
from fmcore.intake.arrays import Arrays
from fmcore.intake.images import Images
from fmcore.intake.known import Digits
from fmcore.intake.latents import Latents, as_latents, units_of
from fmcore.models.autoencoder import Decoder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(path)
    random_vae(3).save_pretrained("vae")
    return tmp_path


def of_images(**options):
    return Latents(**{"images": Images("images", size=8), "autoencoder": "vae", "shape": (4, 4, 4), **options})


def made(source):
    source.check()
    return source.load(), source.images.load(), source.opened()


def test_latents_come_with_their_images_classes_and_units(folder):
    data, images, _ = made(of_images())
    assert data.shape == (4, 4, 4)
    assert torch.equal(data.reference, images.x1)
    assert (data.names, data.bin_width, data.units) == (("cat", "dog"), None, None)
    assert torch.equal(data.label, images.label)
    theirs = random_vae(3).encode(dequantise(images.x1)).latent_dist.mean
    torch.testing.assert_close(data.encoding.units.restored(data.x1), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(data.x1.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x1.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    # What is said to be lost, by another way: diffusers' own round trip.
    back = quantise(random_vae(3).decode(theirs).sample).float()
    off = back - images.x1.float()
    lost = data.about["encoded"]
    assert lost["grey_levels"] == pytest.approx(float(off.abs().mean()), rel=1e-3)
    assert lost["psnr"] == pytest.approx(20 * np.log10(255 / float(off.square().mean().sqrt())), rel=1e-3)
    assert f"{lost['psnr']:.1f} dB" in data.notes[1]
    assert data.about["misfits"] == 12, "what was done to the images is still said"


def test_a_stored_set_of_latents_comes_back(folder):
    data, _, autoencoder = made(of_images())
    save_dataset(folder / "dataset", data, {"name": "latents"})
    back = load_dataset(folder / "dataset")
    assert torch.equal(back.x1, data.x1)
    assert torch.equal(back.reference, data.reference)
    assert back.encoding == data.encoding
    images = Decoder(autoencoder, back.encoding)(back.x1, "fp32")
    assert images.shape == (12, 3, 8, 8)


def test_moments_are_those_of_all_latents():
    z = torch.randn(1203, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1000
    z[:, 2] = 7.0  # always the same
    units, bad = units_of(z)
    assert not bad
    assert units.mean == pytest.approx(z.double().mean((0, 2, 3)).tolist())
    assert units.std[:2] == pytest.approx(z[:, :2].double().std((0, 2, 3), correction=0).tolist(), rel=1e-6)
    assert units.std[2] == 1


def test_images_in_floats_are_kept_as_pixels(folder):
    random_vae().save_pretrained("grey")
    data, images, _ = made(Latents(Digits(), "grey", (4, 4, 4)))
    assert torch.equal(data.reference, quantise(images.x1))
    assert data.num_classes == 10


def test_latents_that_are_not_finite_are_refused(folder):
    source = of_images()
    data, autoencoder = source.images.load(), source.opened()
    z = torch.zeros(12, 4, 4, 4)
    z[5, 0, 0, 0] = float("inf")
    with pytest.raises(DataError, match="latents of 1 of 12 images are not finite, the first is of image 5"):
        as_latents(data, z, autoencoder)


MISTAKES = {
    "no folder": ({"autoencoder": "nowhere"}, "data.autoencoder: nowhere: no such folder"),
    "channels": ({"images": Images("images", size=8, channels=1)}, "data.autoencoder: vae: it takes images of 3"),
    "sides": (
        {"images": Images("images", size=9)},
        "data.autoencoder: vae: it needs sides divisible by 2, got 9x9",
    ),
    "shape": (
        {"shape": (4, 8, 8)},
        r"data.shape: expected \[4, 4, 4\], which vae makes of images of 3x8x8, got \[4, 8, 8\]",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_without_reading_images(folder, mistake, monkeypatch):
    options, message = MISTAKES[mistake]
    monkeypatch.setattr(Images, "load", None)
    for ask in (Latents.check, Latents.opened):
        with pytest.raises(DataError, match=message):
            ask(of_images(**options))


def test_keys_that_cannot_be(folder):
    with pytest.raises(ValueError, match=r"shape must be that of a latent, \[C, H, W\], got \[4\]"):
        of_images(shape=(4,))
    with pytest.raises(ValueError, match="images: arrays are images with values: pixels, got standardised"):
        of_images(images=Arrays("x.npy", (3, 8, 8)))
