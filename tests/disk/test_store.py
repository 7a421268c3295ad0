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
from fmcore.model import load as load_model
from repository import ROOT
from written import MODELS, contents, cut, empty, flip_a_bit, remove, scramble, write_model, write_pairs


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
    assert len(here) == 2 * 4 + 5
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
        elif not name.endswith("SHA256SUMS"):
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            assert header.pop("__metadata__", {}).keys() <= {"sha256"}
            assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(data) - 8 - length


# --- damage -------------------------------------------------------------------------------------------------


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
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        open_pairs(tmp_path)


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


def test_reading_what_is_no_safetensors_file_names_it(tmp_path):
    scramble(tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"x is damaged"):
        read_tensors(tmp_path / "x")
