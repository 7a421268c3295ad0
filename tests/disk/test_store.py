"""Artifacts: what is written is what is read, byte for byte, or it is refused by name."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_file, write_json, write_tensors
from fmcore.disk.pairs import finished_shards, open_pairs, seal_pairs, shard_path, write_shard
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import Convention, Guidance, network_field
from fmcore.flow.paths import VE, VP, Discrete
from fmcore.model import load as load_model
from fmcore.models.folder import save_model
from fmcore.models.networks import NETWORKS
from fmcore.ode.sampling import Sampling
from repository import ROOT
from written import MODELS, contents, cut, empty, flip_a_bit, remove, scramble, write_model, write_pairs


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


@pytest.mark.parametrize("label", [True, False])
def test_pairs_come_back_in_order(tmp_path, label):
    write_pairs(tmp_path, label=label)
    pairs, manifest = open_pairs(tmp_path)
    noise = [torch.randn((2, 4, 2), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert torch.equal(pairs.x0, torch.cat([n[0] for n in noise]))
    assert torch.equal(pairs.x1, torch.cat([n[1] for n in noise]))
    assert (manifest["teacher"], manifest["seed"]) == ("abc", 3)
    if label:
        assert pairs.label.tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5]
    else:
        assert pairs.label is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pairs_keep_their_dtype(tmp_path, dtype):
    x = torch.randn(3, 2).to(dtype)
    seal_pairs(tmp_path, [write_shard(tmp_path, 0, [Pairs(x, -x)])], {})
    pairs, _ = open_pairs(tmp_path)
    assert pairs.x0.dtype == dtype
    assert torch.equal(pairs.x1, -x)


# --- bytes --------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import written
for kind in ("mlp", "mlp with classes"):
    written.write_model(Path(sys.argv[2]) / kind, kind)
written.write_pairs(Path(sys.argv[2]) / "pairs")
"""


def test_two_processes_write_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", WRITER, str(ROOT / "tests"), str(tmp_path / "there")]
    other = subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": "7"}, cwd=ROOT)
    for kind in ("mlp", "mlp with classes"):
        write_model(tmp_path / "here" / kind, kind)
    write_pairs(tmp_path / "here" / "pairs")
    assert other.wait() == 0
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert len(here) == 2 * 3 + 4
    assert here == there


def test_bytes_do_not_depend_on_the_order_or_layout_of_tensors(tmp_path):
    a, b = torch.randn(3, 4), torch.arange(5)
    write_tensors(tmp_path / "1", {"a": a, "b": b})
    write_tensors(tmp_path / "2", {"b": b, "a": a.T.contiguous().T})
    assert sha256(tmp_path / "1") == sha256(tmp_path / "2")


@pytest.mark.parametrize("kind", MODELS)
def test_no_file_of_a_model_is_a_pickle_and_none_says_when_or_where(tmp_path, kind, monkeypatch):
    write_model(tmp_path / "model", kind)
    write_pairs(tmp_path / "pairs")

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    load_model(tmp_path / "model")
    open_pairs(tmp_path / "pairs")
    for name, data in contents(tmp_path).items():
        if name.endswith(".json"):
            assert str(tmp_path) not in data.decode()
            json.loads(data)
        else:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            assert "__metadata__" not in header
            assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(data) - 8 - length


# --- damage -------------------------------------------------------------------------------------------------


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
    with pytest.raises(ArtifactError, match="does not describe a model of this version"):
        load_model(tmp_path)


def test_another_model_s_manifest_is_refused(tmp_path):
    write_model(tmp_path / "a")
    write_model(tmp_path / "b", "unet")
    (tmp_path / "b" / "manifest.json").replace(tmp_path / "a" / "manifest.json")
    with pytest.raises(ArtifactError, match=r"model\.safetensors has SHA-256 .* its manifest says"):
        load_model(tmp_path / "a")


def test_a_file_in_place_of_a_model_folder_is_refused(tmp_path):
    write_model(tmp_path)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty, scramble, remove])
@pytest.mark.parametrize("start", [0, 4, 8])
def test_a_damaged_shard_is_refused_and_named(tmp_path, start, damage):
    write_pairs(tmp_path)
    damage(shard_path(tmp_path, start))
    with pytest.raises(ArtifactError, match=f"pairs-{start:010d}.safetensors"):
        open_pairs(tmp_path)


@pytest.mark.parametrize("damage", [cut, empty, scramble, remove])
def test_pairs_without_a_whole_manifest_are_refused(tmp_path, damage):
    write_pairs(tmp_path)
    damage(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_pairs(tmp_path)


def test_a_gap_between_shards_is_refused(tmp_path):
    rows = write_pairs(tmp_path)
    seal_pairs(tmp_path, [rows[0], rows[2]], {})
    with pytest.raises(ArtifactError, match="expected a shard at pair 4, got 8"):
        open_pairs(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [
        lambda rows: {"stage": "base", "sha256": "0"},
        lambda rows: {"shards": []},
        lambda rows: {"shards": [{"file": rows[0].file}]},
        lambda rows: {"shards": [{**rows[0]._asdict(), "pairs": 3}]},
    ],
    ids=["of a model", "no shards", "half a shard", "wrong count"],
)
def test_a_manifest_that_does_not_describe_these_pairs_is_refused(tmp_path, manifest):
    write_json(tmp_path / "manifest.json", manifest(write_pairs(tmp_path)))
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        open_pairs(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, bad):
    with pytest.raises(ArtifactError, match=r"weight enter\.weight is not finite"):
        write_model(tmp_path / "model", spoil=bad)
    assert not (tmp_path / "model").exists()


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ArtifactError, match=r"x\.json: expected a JSON object, got list"):
        read_json(tmp_path / "x.json")


# --- interrupted writers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, old):
    path = tmp_path / "deep" / "file"
    if old:
        write_file(path, old)

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert list(contents(tmp_path).values()) == ([old] if old else [])


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from fmcore.flow.couplings import Pairs
from fmcore.disk.pairs import write_shard
folder, x = Path(sys.argv[1]), torch.zeros(4, 2)
write_shard(folder, 0, [Pairs(x, x)])
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_shard(folder, 4, [Pairs(x, x)])
"""


def test_a_killed_writer_leaves_no_shard_that_looks_finished(tmp_path):
    found = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=ROOT)
    assert found.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("pairs-*.safetensors")] == [shard_path(tmp_path, 0).name]
    assert list(finished_shards(tmp_path)) == [0]
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        open_pairs(tmp_path)


def test_finished_shards_are_taken_up_and_damaged_ones_made_again(tmp_path):
    rows = write_pairs(tmp_path, seal=False)
    assert list(finished_shards(tmp_path).values()) == rows
    cut(shard_path(tmp_path, 4))
    (tmp_path / "pairs-of-shoes.safetensors").write_bytes(b"?")
    found = finished_shards(tmp_path)
    assert list(found.values()) == [rows[0], rows[2]]
    noise = torch.randn((2, 4, 2), generator=torch.Generator().manual_seed(1))
    again = write_shard(tmp_path, 4, [Pairs(noise[0], noise[1], torch.arange(4) + 1)])
    assert again == rows[1]


# --- sampling -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, request.param)
    return load_model(folder)


def test_sample_i_does_not_depend_on_how_many_are_drawn(model):
    many, few = model.sample(9, 2, precision="fp32"), model.sample(4, 2, precision="fp32")
    assert many.shape == (9, *model.shape)
    torch.testing.assert_close(many[:4], few, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many[0], many[1])
    assert not torch.allclose(model.sample(4, 2, seed=1, precision="fp32"), few)


def test_more_samples_than_a_batch(tmp_path):
    write_model(tmp_path)
    model = load_model(tmp_path)
    many = model.sample(2003, 1, precision="fp32")
    assert many.shape == (2003, 2)
    torch.testing.assert_close(many[:5], model.sample(5, 1, precision="fp32"), rtol=1e-4, atol=1e-5)
    assert len(many.unique(dim=0)) == 2003


def test_a_label_is_asked_for_or_drawn(model):
    if model.num_classes is None:
        with pytest.raises(ValueError, match="label 0 was asked for, but this model was trained without classes"):
            model.sample(2, 1, label=0)
        return
    last = model.num_classes - 1
    by_label = [model.sample(6, 1, label=k, precision="fp32") for k in range(model.num_classes)]
    assert not torch.allclose(by_label[0], by_label[last])
    drawn = model.sample(6, 1, precision="fp32")
    for i in range(6):
        assert any(torch.allclose(drawn[i], one[i], rtol=1e-4, atol=1e-5) for one in by_label)
    for label in (-1, last + 1):
        with pytest.raises(ValueError, match=rf"label must lie in 0\.\.{last}, got {label}"):
            model.sample(2, 1, label=label)


@pytest.mark.native
@pytest.mark.parametrize(
    ("solver", "nfe", "message"),
    [
        ("heun", 3, "cannot spend 3"),
        ("rk4", 6, "cannot spend 6"),
        ("euler", 0, "cannot spend 0"),
        ("rk9", 1, "'rk9'"),
    ],
)
def test_evaluations_that_cannot_be_spent_are_refused(model, solver, nfe, message):
    with pytest.raises(ValueError, match=message):
        model.sample(2, Sampling(solver, nfe=nfe))


def test_reading_what_is_no_safetensors_file_names_it(tmp_path):
    scramble(tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"x is damaged"):
        read_tensors(tmp_path / "x")


# --- conventions, guidance, averages ------------------------------------------------------------------------

CONVENTIONS = {
    "own path": Convention(VP(0.2, 15.0)),
    "a diffusion model's table": Convention(Discrete((0.9, 0.5, 0.1)), "noise"),
    "edm": Convention(VE(0.002, 80.0), "data"),
}


@pytest.mark.parametrize("kind", CONVENTIONS)
def test_a_model_keeps_its_convention_and_is_sampled_on_the_linear_path(tmp_path, kind):
    network = write_model(tmp_path / "plain")
    convention = CONVENTIONS[kind]
    config, shape, classes = MODELS["mlp"]
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {}}
    save_model(tmp_path / "foreign", network, convention=convention, **options)
    model = load_model(tmp_path / "foreign")
    assert model.convention == convention
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 0.9, 5)
    expected = network_field(network, "fp32", convention)(x, t, None)
    torch.testing.assert_close(model.field("fp32")(x, t, None), expected, rtol=0, atol=0)
    assert not torch.allclose(expected, network(x, t, None))


@pytest.mark.native
def test_guidance_needs_a_model_that_was_trained_for_it(tmp_path):
    config, shape, classes = MODELS["mlp with classes"]
    network = write_model(tmp_path / "plain", "mlp with classes")
    with pytest.raises(ValueError, match="trained without label dropout"):
        load_model(tmp_path / "plain").sample(2, Sampling(nfe=2, guidance=Guidance(2.0)))
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {}}
    save_model(tmp_path / "guided", network, null_label=classes, **options)
    model = load_model(tmp_path / "guided")
    plain, one, two = (
        model.sample(3, Sampling(nfe=4, guidance=guidance), label=1, precision="fp32")
        for guidance in (None, Guidance(1.0), Guidance(2.0))
    )
    half = model.sample(3, 2, label=1, precision="fp32")
    torch.testing.assert_close(one, half)  # a guided step costs two evaluations
    assert not torch.allclose(two, half)
    assert not torch.allclose(plain, half)
    with pytest.raises(ValueError, match="cannot spend 3"):
        model.sample(3, Sampling(nfe=3, guidance=Guidance(2.0)))


def test_further_averages_are_there_to_be_asked_for(tmp_path):
    config, shape, classes = MODELS["mlp"]
    network = write_model(tmp_path / "one")
    other = {name: value + 1 for name, value in network.state_dict().items()}
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {}}
    save_model(tmp_path / "two", network, averages={200_000.0: other}, **options)
    first, second = load_model(tmp_path / "two"), load_model(tmp_path / "two", ema=200_000.0)
    assert first.digest != second.digest
    for name, value in network.state_dict().items():
        assert torch.equal(first.network.state_dict()[name], value)
        assert torch.equal(second.network.state_dict()[name], value + 1)
    with pytest.raises(
        ArtifactError, match=r"no weights with an EMA half-life of 7 images; further ones: ema-200000"
    ):
        load_model(tmp_path / "two", ema=7)
    damaged = tmp_path / "two" / "ema-200000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")
    load_model(tmp_path / "two")
    with pytest.raises(ArtifactError, match=r"ema-200000.safetensors has SHA-256"):
        load_model(tmp_path / "two", ema=200_000.0)


def test_samples_of_a_stochastic_solver_do_not_depend_on_how_many_are_drawn(tmp_path):
    write_model(tmp_path / "m")
    model = load_model(tmp_path / "m")
    many, few = (model.sample(count, Sampling("sde", nfe=4), precision="fp32") for count in (20, 5))
    torch.testing.assert_close(many[:5], few)
    assert not torch.allclose(many, model.sample(20, 4, precision="fp32"))
