"""Autoencoders from disk: they compute as in diffusers, come from safetensors alone, and are found by digest."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import random_vae
from fmcore.disk.dataset import Encoding, Units
from fmcore.disk.files import ArtifactError, sha256
from fmcore.models import autoencoder
from fmcore.models.autoencoder import (
    FOLDER,
    Decoder,
    Form,
    autoencoder_files,
    beside,
    copy_autoencoder,
    decoder_of,
    form_of,
    read_autoencoder,
)
from fmcore.models.foreign import WEIGHTS
from written import cut


def images(count, channels=1, sides=(8, 8)):
    return torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def folder(tmp_path):
    random_vae().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize("options", [{}, {"channels": 3, "latent_channels": 2}, {"mid_block_add_attention": True}])
def test_it_computes_what_diffusers_does(tmp_path, options, monkeypatch):
    theirs = random_vae(**options)
    theirs.save_pretrained(tmp_path)
    ours, x = read_autoencoder(tmp_path), images(7, options.get("channels", 1), (8, 12))
    monkeypatch.setattr(autoencoder, "PIXELS", 2 * 8 * 12)  # two at a time
    z = theirs.encode(x).latent_dist.mode()
    torch.testing.assert_close(ours.encoded(x), z)
    torch.testing.assert_close(ours.decoded(z), theirs.decode(z).sample)
    assert form_of(tmp_path) == Form(options.get("channels", 1), theirs.config.latent_channels, ours.factor)
    assert form_of(tmp_path).latent(tuple(x.shape[1:])) == tuple(z.shape[1:])


def test_a_decoder_gives_latents_their_units_back(folder):
    ours = read_autoencoder(folder)
    units = Units((1.0, -2.0, 0.0, 5.0), (3.0, 0.5, 1.0, 2.0))
    z = torch.randn(3, 4, 4, 4)
    decoder = Decoder(ours, Encoding(ours.digest, (1, 8, 8), units))
    whole = z * torch.tensor(units.std).view(-1, 1, 1) + torch.tensor(units.mean).view(-1, 1, 1)
    torch.testing.assert_close(decoder(z, "fp32"), ours.decoded(whole))
    rough = decoder(z, "bf16")
    assert rough.dtype == torch.float32
    assert 0 < (rough - decoder(z, "fp32")).abs().max() < 0.1


def test_weights_in_half_precision_and_of_old_names(tmp_path):
    random_vae(mid_block_add_attention=True).save_pretrained(tmp_path)
    x, wanted = images(2), read_autoencoder(tmp_path).encoded(images(2))
    tensors = load_file(tmp_path / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor.half()
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / WEIGHTS)
    network = read_autoencoder(tmp_path)
    assert next(network.network.parameters()).dtype == torch.float32
    torch.testing.assert_close(network.encoded(x), wanted, atol=0.02, rtol=0.02)


def test_a_pipeline_s_subfolder_and_a_copy(folder):
    assert autoencoder_files(folder.parent) == (folder / "config.json", folder / WEIGHTS)
    (folder / "README.md").write_text("beside")
    copy_autoencoder(folder.parent, folder.parent / "copy")
    assert sorted(path.name for path in (folder.parent / "copy").iterdir()) == ["config.json", WEIGHTS]
    assert read_autoencoder(folder.parent / "copy").digest == read_autoencoder(folder).digest


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def renamed(name):
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def attending(folder):
    """Weights with attention, beside a config without."""
    random_vae(mid_block_add_attention=True).save_pretrained(folder)
    changed(folder, mid_block_add_attention=False)


MISTAKES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing: expected an AutoencoderKL"),
    "a pickle": (renamed("diffusion_pytorch_model.bin"), "a pickle, which is not read.*convert it: AutoencoderKL"),
    "a variant": (renamed("diffusion_pytorch_model.fp16.safetensors"), "fp16.safetensors: copy it to that name"),
    "cut weights": (lambda folder: cut(folder / WEIGHTS), "is damaged"),
    "another class": (
        lambda folder: changed(folder, _class_name="VQModel"),
        "expected an AutoencoderKL, got VQModel",
    ),
    "other channels": (lambda folder: changed(folder, latent_channels=3), "is not of this network"),
    "attention left out": (attending, "is not of this network: expected for tensor 'decoder.mid_block.att.* none"),
    "a tensor more": (
        lambda folder: save_file(load_file(folder / WEIGHTS) | {"more": torch.ones(2)}, folder / WEIGHTS),
        r"is not of this network: expected for tensor 'more' none, got \(2,\)",
    ),
    "no blocks": (lambda folder: changed(folder, down_block_types=["Nonsense"]), "config.json: .*Nonsense"),
    "no channels": (lambda folder: changed(folder, block_out_channels=[0, 8]), "for block_out_channels whole"),
    "endless": (lambda folder: changed(folder, layers_per_block=10**9), "layers_per_block whole numbers from 1"),
    "a fraction": (lambda folder: changed(folder, latent_channels=2.5), "for latent_channels whole numbers"),
    "groups": (lambda folder: changed(folder, norm_num_groups=7), "config.json: ValueError: num_channels"),
    "activation": (lambda folder: changed(folder, act_fn=[1]), "config.json: "),
    "more out": (lambda folder: changed(folder, out_channels=2), "as many out_channels as in_channels"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_none_is_refused_in_one_line(folder, mistake):
    spoil, message = MISTAKES[mistake]
    spoil(folder)
    for read in (form_of, read_autoencoder):
        with pytest.raises(ArtifactError, match=message) as error:
            read(folder)
        assert "\n" not in str(error.value)


def test_the_form_says_what_images_it_takes():
    form = Form(3, 4, 8)
    assert form.latent((3, 64, 32)) == (4, 8, 4)
    with pytest.raises(ValueError, match="images of 3 channels, got 1"):
        form.latent((1, 64, 32))
    with pytest.raises(ValueError, match="divisible by 8, got 60x32"):
        form.latent((3, 60, 32))


def test_it_is_found_by_its_digest(tmp_path):
    for seed, place in enumerate(("models/base/autoencoder", "dataset/autoencoder", "elsewhere")):
        random_vae(seed=seed).save_pretrained(tmp_path / place)
    places = beside(tmp_path / "models/base")
    assert places == [tmp_path / "models/base" / FOLDER, tmp_path / "dataset" / FOLDER]
    units = Units((0.0,) * 4, (1.0,) * 4)
    for place in places:
        encoding = Encoding(sha256(place / WEIGHTS), (1, 8, 8), units)
        assert decoder_of(encoding, places).autoencoder.digest == encoding.autoencoder
    digest = sha256(tmp_path / "elsewhere" / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"SHA-256 {digest[:12]}.*that in .*models/base.*--autoencoder"):
        decoder_of(Encoding(digest, (1, 8, 8), units), places)
    with pytest.raises(ArtifactError, match="nowhere has none"):
        decoder_of(Encoding(digest, (1, 8, 8), units), [tmp_path / "nowhere"])
