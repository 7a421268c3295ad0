"""Samples as files: exact pixels, one run a folder, and the same bytes whether it was stopped or not."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fmcore.cli import main
from fmcore.export import images
from fmcore.export.images import claimed, write_images, write_pages
from fmcore.flow.pixels import quantise
from fmcore.model import load
from fmcore.models.networks import MLP
from written import contents, write_model, write_network

SHAPES = {"grey": (1, 4, 6), "rgb": (3, 6, 4), "five": (5, 4, 4)}
RUN = {"seed": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, shape in SHAPES.items():
        write_network(folder / name, MLP(width=8, depth=1), shape, rounds=0)
    write_model(folder / "points")
    return folder


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("fmcore.model.SAMPLE_BATCH", 8)


def sample(models, name, out, *more):
    return main(["sample", str(models / name), "--out", f"{out}/", "--count", "20", *more])


@pytest.mark.precisions
@pytest.mark.parametrize(("name", "mode"), [("grey", "L"), ("rgb", "RGB")])
def test_a_folder_holds_the_pixels_of_the_samples(models, tmp_path, name, mode, small_batches):
    assert sample(models, name, tmp_path / "x", "--seed", "3") == 0
    wanted = quantise(torch.cat(list(load(models / name).batches(20, 1, seed=3))))
    names = sorted(path.name for path in (tmp_path / "x").glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(20)]
    for i, file in enumerate(names):
        with Image.open(tmp_path / "x" / file) as image:
            assert image.mode == mode
            found = np.asarray(image).reshape(*wanted.shape[2:], -1)
        assert (found == wanted[i].permute(1, 2, 0).numpy()).all()


@pytest.mark.native
@pytest.mark.parametrize("after", [0, 5, 8, 19])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(models, tmp_path, monkeypatch, small_batches, after):
    sample(models, "grey", tmp_path / "whole")
    drawn, left = images.png, iter(range(after))

    def stops(sheet):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return drawn(sheet)

    with monkeypatch.context() as patch:
        patch.setattr(images, "png", stops)
        with pytest.raises(KeyboardInterrupt):
            sample(models, "grey", tmp_path / "x")
    assert len(list((tmp_path / "x").glob("*.png"))) == after
    (tmp_path / "x" / ".000005.png.part").write_bytes(b"begun")
    (tmp_path / "x" / ".DS_Store").write_bytes(b"of a browser of files")
    batches = []
    of_model = type(load(models / "grey")).batches
    monkeypatch.setattr(
        "fmcore.model.Model.batches", lambda self, *a, **k: batches.append(k["start"]) or of_model(self, *a, **k)
    )
    assert sample(models, "grey", tmp_path / "x") == 0
    assert batches == [after // 8 * 8]
    (tmp_path / "x" / ".DS_Store").unlink()
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


@pytest.mark.native
def test_a_run_can_be_made_longer_and_an_empty_file_is_made_again(models, tmp_path, capsys, small_batches):
    sample(models, "grey", tmp_path / "whole")
    sample(models, "grey", tmp_path / "x", "--count", "12")
    (tmp_path / "x/000003.png").write_bytes(b"")  # as a machine that lost its power leaves it
    assert sample(models, "grey", tmp_path / "x") == 0
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    capsys.readouterr()
    assert sample(models, "grey", tmp_path / "x") == 0
    assert capsys.readouterr().out.endswith(" (20 were there)\n")


REFUSED = {
    "another seed": (["--seed", "1"], "its seed was 0, this one's is 1"),
    "another number of steps": (["--nfe", "2"], "its nfe was 1, this one's is 2"),
    "fewer": (["--count", "5"], "holds image 19 of this run already: expected --count of at least 20"),
}


@pytest.mark.native
@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_of_another_run_is_refused(models, tmp_path, capsys, case):
    more, message = REFUSED[case]
    sample(models, "grey", tmp_path / "x")
    before = contents(tmp_path / "x")
    capsys.readouterr()
    assert sample(models, "grey", tmp_path / "x", *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert contents(tmp_path / "x") == before


@pytest.mark.native
@pytest.mark.parametrize("name", ["cat.jpg", "000001.png", "notes"])
def test_a_folder_with_other_files_is_refused(models, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"mine")
    assert sample(models, "grey", tmp_path) == 2
    assert "expected a new" in capsys.readouterr().err
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.native
def test_what_are_no_images_has_no_folder(models, tmp_path, capsys):
    for name in ("points", "five"):
        assert sample(models, name, tmp_path / "x") == 2
        assert "no grey or RGB images: expected --out to end in .npy" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    assert sample(models, "grey", tmp_path / "file") == 2
    assert "is a file: expected a folder" in capsys.readouterr().err


def test_what_made_them_is_kept(tmp_path):
    assert claimed(tmp_path, {"shape": (1, 2, 3), **RUN}, 3) == [0, 1, 2]
    assert json.loads((tmp_path / "samples.json").read_bytes()) == {"shape": [1, 2, 3], "seed": 0}
    assert claimed(tmp_path, {"shape": (1, 2, 3), **RUN}, 3) == [0, 1, 2]


def test_only_what_is_wanted_is_written(tmp_path):
    batches = torch.linspace(-1, 1, 9).reshape(9, 1, 1, 1).expand(9, 1, 2, 2).split(4)
    assert list(write_images(tmp_path, batches, 16, [17, 23])) == [20, 24, 25]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000017.png", "000023.png"]
    with Image.open(tmp_path / "000023.png") as image:
        assert np.asarray(image).tolist() == [[223, 223], [223, 223]]


@pytest.mark.parametrize(("count", "pages"), [(1, 1), (64, 1), (65, 1), (256, 1), (257, 2), (2600, 11)])
def test_many_images_become_pages(tmp_path, count, pages):
    grey = (torch.arange(count) % 251).reshape(-1, 1, 1, 1) / 127.5 - 1  # a grey level each, none of them white
    found = write_pages(grey.expand(count, 1, 2, 2).split(100), count, tmp_path / "new" / "grid.png")
    assert len(found) == pages == len(list((tmp_path / "new").iterdir()))
    assert [path.name for path in found] == sorted(path.name for path in found)
    levels = []
    for path in found:
        with Image.open(path) as image:
            sheet = np.asarray(image)[24::72, 24::72]  # 2x2 images of 24 times their size, a gap of 24 between
        levels += sheet[sheet < 255].tolist()
    assert levels == (torch.arange(count) % 251).tolist()


@pytest.mark.native
def test_points_become_a_table(models, tmp_path):
    out = tmp_path / "new" / "points.csv"
    assert main(["sample", str(models / "points"), "--out", str(out), "--count", "9"]) == 0
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0] == ["dim0", "dim1"]
    found = np.array(rows[1:], dtype=np.float32)
    assert main(["sample", str(models / "points"), "--out", str(tmp_path / "p.npy"), "--count", "9"]) == 0
    assert (np.load(tmp_path / "p.npy") == found).all()


@pytest.mark.native
def test_images_are_no_table(models, tmp_path, capsys):
    assert main(["sample", str(models / "grey"), "--out", str(tmp_path / "x.csv")]) == 2
    assert "are no table: expected .npy" in capsys.readouterr().err


def test_large_samples_are_drawn_few_at_a_time(models):
    small, wide = load(models / "points"), load(models / "grey")
    assert small.batch == 1000
    object.__setattr__(wide, "shape", (3, 256, 256))
    assert wide.batch * 3 * 256 * 256 <= 2**20 < (wide.batch + 1) * 3 * 256 * 256
