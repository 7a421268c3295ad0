"""A model's folder: it comes back whole, or what is damaged in it is named."""

import pytest
import torch

from fmcore.disk.files import ArtifactError, read_json, sha256, write_json
from fmcore.model import load as load_model
from fmcore.models.networks import NETWORKS
from written import MODELS, cut, empty, flip_a_bit, remove, scramble, write_model


def test_there_is_a_model_of_every_network():
    assert {config.name for config, _, _ in MODELS.values()} == set(NETWORKS)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_comes_back(tmp_path, kind):
    network, (config, shape, classes) = write_model(tmp_path / "model", kind), MODELS[kind]
    model = load_model(tmp_path / "model")
    assert (model.network_config, model.shape, model.num_classes) == (config, shape, classes)
    assert model.digest == model.manifest["sha256"] == sha256(tmp_path / "model" / "model.safetensors")
    assert model.manifest["stage"] == "base"
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    x, t = torch.randn(2, *shape), torch.rand(2)
    label = None if classes is None else torch.tensor([0, classes - 1])
    weights, again = network.state_dict(), model.network.state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    with torch.no_grad():  # kernels differ in the last bits by how memory is aligned
        torch.testing.assert_close(model.field("fp32")(x, t, label), network(x, t, label), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty, scramble, remove])
def test_damaged_weights_are_refused_and_named(tmp_path, damage):
    write_model(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", [cut, empty, scramble, remove])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_damaged_description_is_refused_and_named(tmp_path, name, damage):
    write_model(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ArtifactError, match=name):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"time": "t=1 noise, t=0 data"},
        {"network": {"name": "transformer"}},
        {"network": {"name": "mlp", "width": 16, "depth": 1, "heads": 3}},
        {"network": {"name": "mlp", "width": 32, "depth": 1, "fourier": 0}},
        {"network": {"name": "mlp", "width": 0, "depth": 1, "fourier": 0}},
        {"network": {}},
        {"network": 3},
        {"shape": [3]},
        {"shape": None},
        {"num_classes": 4},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path, change):
    write_model(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), **change})
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_model(tmp_path)


def test_another_model_s_manifest_is_refused(tmp_path):
    write_model(tmp_path / "a")
    write_model(tmp_path / "b", "unet")
    (tmp_path / "b" / "manifest.json").replace(tmp_path / "a" / "manifest.json")
    (tmp_path / "a" / "SHA256SUMS").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors has SHA-256 .* its manifest says"):
        load_model(tmp_path / "a")


def test_a_file_in_place_of_a_model_folder_is_refused(tmp_path):
    write_model(tmp_path)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, bad):
    with pytest.raises(ArtifactError, match=r"weight enter\.weight is not finite"):
        write_model(tmp_path / "model", spoil=bad)
    assert not (tmp_path / "model").exists()
