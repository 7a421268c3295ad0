"""Data read by and by: into files instead of memory, and from where one who was stopped was."""

import os

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fmcore.disk.dataset import DataError
from fmcore.disk.files import mapped, write_tensors
from fmcore.disk.kept import keep, kept
from fmcore.intake import pictured
from fmcore.intake.arrays import Arrays
from fmcore.intake.images import Images
from fmcore.intake.pictured import ended


@pytest.fixture
def folder(tmp_path):
    """Images of which some are transparent, wide, or have 12 bits."""
    root, random = tmp_path / "images", np.random.default_rng(0)
    root.mkdir()
    for i in range(40):
        kind = {0: (12, 8, 4), 1: (8, 20, 3)}.get(i % 4, (8, 8, 3))
        image = Image.fromarray(random.integers(0, 256, kind, dtype=np.uint8))
        if i == 30:
            image = Image.fromarray(random.integers(0, 4096, (8, 8)).astype(np.uint16))
        image.save(root / f"{i}.png")
    return root


def every_image(monkeypatch):
    monkeypatch.setattr(pictured, "TOLD", 1)
    monkeypatch.setattr(pictured, "SAVED_SECONDS", -1.0)


def of(data):
    return data.x1.tolist(), data.about, data.notes


@pytest.mark.parametrize("stop", [1, 17, 31, 39])
def test_one_who_was_stopped_goes_on_to_the_same_end(folder, tmp_path, monkeypatch, stop):
    every_image(monkeypatch)
    data, scratch = Images(str(folder), size=8), tmp_path / "scratch"
    scratch.mkdir()
    wanted = of(data.load())
    for done, total in data.loading(scratch):
        assert total == 40
        if done == stop:
            break
    (folder / "0.png").write_bytes(b"not opened again")
    steps = data.loading(scratch)
    assert next(steps) == (stop, 40)
    assert of(ended(steps)) == wanted


def spoilt(scratch, how):
    """What a power cut, a full disk or a curious user may leave."""
    read = scratch / "read.json"
    found = kept(read)
    match how:
        case "images gone":
            (scratch / "x1").unlink()
        case "images cut":
            os.truncate(scratch / "x1", 100)
        case "held out gone":
            (scratch / "held_out").unlink()
        case "too many":
            keep(read, found | {"tally": found["tally"] | {"count": 41}})
        case "negative":
            keep(read, found | {"tally": found["tally"] | {"count": -3}})
        case "no tally":
            read.write_text("{}")
        case "torn":
            read.write_text(read.read_text()[:20])
        case "text":
            keep(read, found | {"tally": "all"})
        case "one image changed":
            with (scratch / "x1").open("r+b") as file:
                file.seek(700)
                file.write(bytes([255 - file.read(1)[0]]))
        case "a digit changed":
            read.write_text(read.read_text().replace('"count": 20', '"count": 19'))
        case "blocks of another kind":
            keep(read, found | {"blocks": {"x1": [3], "held_out": 5}})


CASES = (
    "images gone",
    "images cut",
    "held out gone",
    "too many",
    "negative",
    "no tally",
    "torn",
    "text",
    "one image changed",
    "a digit changed",
    "blocks of another kind",
)


@pytest.mark.parametrize("how", CASES)
def test_what_does_not_fit_is_read_again(folder, tmp_path, monkeypatch, how):
    every_image(monkeypatch)
    data, scratch = Images(str(folder), size=8, held_out=0.2), tmp_path / "scratch"
    scratch.mkdir()
    wanted = data.load()
    for done, _ in data.loading(scratch):
        if done == 20:
            break
    spoilt(scratch, how)
    steps = data.loading(scratch)
    assert next(steps) == (0, 40)
    found = ended(steps)
    assert of(found) == of(wanted)
    assert torch.equal(found.held_out, wanted.held_out)


def test_what_could_not_be_read_is_tried_again(folder, tmp_path, monkeypatch):
    every_image(monkeypatch)
    data, scratch = Images(str(folder), size=8), tmp_path / "scratch"
    scratch.mkdir()
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 40 images cannot be read: .*3\.png"):
        ended(data.loading(scratch))
    (folder / "3.png").write_bytes(whole)
    assert of(ended(data.loading(scratch))) == of(data.load())


def test_arrays_in_files_are_those_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(5, 2, (300, 2, 4)))
    for values in ("standardised", "raw"):
        data = Arrays(str(tmp_path / "x.npy"), (2, 4), values=values)
        a, b = data.load(), data.load(tmp_path)
        assert torch.equal(a.x1, b.x1)
        assert torch.equal(a.reference, b.reference)
        assert (a.units, a.notes) == (b.units, b.notes)
        assert (tmp_path / "x1").stat().st_size == b.x1.nbytes


def test_a_file_as_a_tensor(tmp_path):
    x = mapped(tmp_path / "x", (3, 4), torch.int16)
    x[:] = torch.arange(12).view(3, 4)
    assert np.array_equal(np.fromfile(tmp_path / "x", np.int16), np.arange(12))
    assert torch.equal(mapped(tmp_path / "x", (3, 4), torch.int16), x), "what was there stays"
    assert mapped(tmp_path / "x", (2, 4), torch.int16).shape == (2, 4)
    with pytest.raises(OSError, match=r"No space left.*: 8,796,093,022,208 bytes are needed"):
        mapped(tmp_path / "y", (2**43,), torch.uint8)
    assert (tmp_path / "y").stat().st_size == 0, "it does not fill the disk first"


def test_tensors_are_written_as_the_library_writes_them(tmp_path):
    tensors = {"b": torch.randn(3, 5)[:, ::2], "a": torch.arange(7), "c": torch.tensor(1.0).double(),
               "d": torch.zeros(0, 3, dtype=torch.uint8), "e": torch.randn(2).bfloat16()}  # fmt: skip
    write_tensors(tmp_path / "x", tensors)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(whole)
