"""Data sets that other libraries keep: their images are read as files are, their classes keep their names."""

import io
import os
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision
from PIL import Image
from pyarrow import parquet

from fmcore.disk.dataset import DataError
from fmcore.intake.huggingface import HuggingFace
from fmcore.intake.images import Images
from fmcore.intake.vision import Torchvision

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of many kinds as files in class folders, and the same rows as data sets on disk."""
    root, random = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    rows = {"image": [], "label": [], "kind": []}
    for i in range(12):
        kind = ("owl", "cat", "bee")[i % 3]
        mode, suffix = (("RGB", "png"), ("RGBA", "png"), ("L", "webp"), ("RGB", "jpg"))[i % 4]
        shape = (20 + i, 16) if mode == "L" else (20 + i, 16, len(mode))
        image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        path = root / "files" / kind / f"{i:02d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        rows["image"].append({"bytes": path.read_bytes(), "path": None})
        rows["label"].append(("owl", "cat", "bee").index(kind))
        rows["kind"].append(kind)
    names = datasets.ClassLabel(names=["owl", "cat", "bee"])
    features = datasets.Features({"image": datasets.Image(), "label": names, "kind": datasets.Value("string")})
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(root / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}).save_to_disk(root / "parts")
    (root / "hub/data").mkdir(parents=True)
    whole.select(range(7)).to_parquet(root / "hub/data/train-00000-of-00002.parquet")
    whole.select(range(7, 12)).to_parquet(root / "hub/data/train-00001-of-00002.parquet")
    whole.select(range(2)).to_parquet(root / "hub/data/test-00000-of-00001.parquet")
    return root


@pytest.fixture
def files(folder):
    """What a folder of the same images gives, in the order of the rows."""
    data = Images(str(folder / "files"), size=16).load()
    order = sorted(range(12), key=lambda i: (("bee", "cat", "owl").index(("owl", "cat", "bee")[i % 3]), i))
    x1 = torch.empty_like(data.x1)
    x1[torch.tensor(order)] = data.x1
    return x1, data


@pytest.mark.parametrize("place", ["one", "parts", "hub", "hub/data/train-00000-of-00002.parquet"])
def test_rows_are_read_as_files_are(folder, files, place, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    x1, plain = files
    data = HuggingFace(str(folder / place), size=16, label="label").load()
    count = 7 if place.endswith("parquet") else 12
    assert torch.equal(data.x1, x1[:count])
    assert data.names == ("owl", "cat", "bee")
    assert data.label.tolist() == [i % 3 for i in range(count)]
    if count == 12:
        assert {key: data.about[key] for key in ("done", "misfits")} == {
            key: plain.about[key] for key in ("done", "misfits")
        }
    assert any("(row " in line and "cropped" in line for line in data.notes)


def test_a_column_of_names_makes_classes_in_natural_order(folder):
    data = HuggingFace(str(folder / "one"), size=16, label="kind").load()
    assert data.names == ("bee", "cat", "owl")
    assert data.label.tolist() == [2 - i % 3 for i in range(12)]
    assert HuggingFace(str(folder / "one"), size=16).load().label is None


REFUSED = {
    "no folder": ({"root": "gone"}, r"data\.root: no file or folder"),
    "no data set": ({"root": "files"}, r"data\.root: .* cannot be read"),
    "no split": ({"root": "parts", "split": "dev"}, r"data\.split: .* holds train, test, got 'dev'"),
    "no split on the hub": ({"root": "hub", "split": "dev"}, r"data\.split: .* holds test, train, got 'dev'"),
    "no column": (
        {"root": "one", "image": "img"},
        r"data\.image: .* has the columns image, label, kind, got 'img'",
    ),
    "no images": ({"root": "one", "image": "kind"}, r"data\.image: expected a column of images, kind holds"),
    "no class": (
        {"root": "one", "label": "breed"},
        r"data\.label: .* has the columns image, label, kind, got 'breed'",
    ),
    "a text": ({"root": "files/owl/00.png"}, r"data\.root: expected a folder or a file ending in \.parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(folder, name):
    changes, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        HuggingFace(**{"size": 16, **changes, "root": str(folder / changes["root"])}).load()


def test_rows_that_cannot_be_read_and_classes_that_lack_are_named(folder, tmp_path):
    whole = datasets.load_from_disk(str(folder / "one")).cast_column("image", datasets.Image(decode=False))
    rows = whole.to_dict()
    rows["image"][4] = {"bytes": b"no image", "path": None}
    rows["image"][6] = None
    rows["label"][2] = -1
    datasets.Dataset.from_dict(rows, features=whole.features).cast_column("image", datasets.Image()).save_to_disk(
        tmp_path / "bad"
    )
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read: row 4: cannot be identified .*; row 6: "):
        HuggingFace(str(tmp_path / "bad"), size=16).load()
    rows["image"][4] = rows["image"][6] = rows["image"][0]
    datasets.Dataset.from_dict(rows, features=whole.features).save_to_disk(tmp_path / "hole")
    with pytest.raises(DataError, match=r"data\.label: 1 of 12 rows have no class, the first is row 2"):
        HuggingFace(str(tmp_path / "hole"), size=16, label="label").load()


def stored(place, rows, **features):
    """Rows with an image each as Parquet, as somebody may write them: nothing in them is looked at."""
    table = pa.table(rows)
    known = {**datasets.Features.from_arrow_schema(table.schema), "image": datasets.Image(), **features}
    parquet.write_table(table.cast(datasets.Features(known).arrow_schema), place)
    return str(place)


@pytest.fixture
def png(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "set" / "images" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("L", (8, 8), 7).save(path)
    return path


COLUMNS = {
    "none": (["a", None] * 4, None, "4 of 8 rows have no {}, the first is row 1"),
    "empty": (["a", "b", "", "b"] * 2, None, "2 of 8 rows have no {}, the first is row 2"),
    "nan": ([0.5, float("nan")] * 4, None, "4 of 8 rows have no {}, the first is row 1"),
    "unknown": ([0, -1] * 4, datasets.ClassLabel(names=["a", "b"]), "4 of 8 rows have no {}, the first is row 1"),
    "structs": ([{"n": i} for i in range(8)], None, "expected whole numbers or names, column holds"),
    "lists": ([[i] for i in range(8)], None, "expected whole numbers or names, column holds"),
    "bytes": ([b"a", b"b"] * 4, None, "expected whole numbers or names, column holds"),
}


@pytest.mark.parametrize("case", COLUMNS)
@pytest.mark.parametrize(("key", "word"), [("label", "class"), ("group", "group")])
def test_columns_that_say_no_class_or_group(png, case, key, word):
    values, kind, message = COLUMNS[case]
    rows = {"image": [{"bytes": png.read_bytes(), "path": None}] * 8, "column": values}
    place = stored(png.parent / "x.parquet", rows, **({"column": kind} if kind else {}))
    with pytest.raises(DataError) as caught:
        HuggingFace(place, size=8, held_out=0.5, **{key: "column"}).load()
    assert str(caught.value).startswith(f"data.{key}: {message.format(word)}")
    assert "\n" not in str(caught.value)


def test_a_column_of_images_is_no_class_or_group(png):
    images = [{"bytes": png.read_bytes(), "path": None}] * 8
    place = stored(
        png.parent / "x.parquet", {"image": images, "other": images}, other=datasets.Image(decode=False)
    )
    for key in ("label", "group"):
        with pytest.raises(DataError, match=rf"data\.{key}: expected whole numbers or names, other holds Image"):
            HuggingFace(place, size=8, held_out=0.5, **{key: "other"}).load()


def test_a_class_that_the_set_does_not_know_is_named(png):
    rows = {"image": [{"bytes": png.read_bytes(), "path": None}] * 3, "column": [0, 1, 2]}
    place = stored(png.parent / "x.parquet", rows, column=datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(DataError, match=r"data\.label: row 2 of column holds 2, expected one of its 2 classes"):
        HuggingFace(place, size=8, label="column").load()


def test_a_row_may_name_a_file_below_the_root(png):
    for named in (str(png), "images/a.png"):
        rows = {"image": [{"bytes": None, "path": named}] * 2}
        data = HuggingFace(stored(png.parents[1] / "x.parquet", rows), size=8, channels=1).load()
        assert data.x1.unique().tolist() == [7]


@pytest.mark.parametrize("case", ["beside", "up", "a link", "a pipe", "a device", "a folder", "gone", "neither"])
def test_a_row_that_names_anything_else_is_refused(png, tmp_path, case):
    root, outside = png.parents[1], tmp_path / "secret.png"
    Image.new("L", (8, 8), 9).save(outside)
    (root / "link.png").symlink_to(outside)
    os.mkfifo(root / "pipe.png")
    named, message = {
        "beside": (str(outside), "names .*, which does not lie below"),
        "up": ("images/../../secret.png", "names .*, which does not lie below"),
        "a link": ("link.png", "names .*, which does not lie below"),
        "a pipe": ("pipe.png", "names .*, which is no file"),
        "a device": ("/dev/zero", "names .*, which does not lie below"),
        "a folder": ("images", "names .*, which is no file"),
        "gone": ("b.png", "names .*, which is no file"),
        "neither": (None, "holds neither an image nor the path of one"),
    }[case]
    place = stored(root / "x.parquet", {"image": [{"bytes": None, "path": named}]})
    with pytest.raises(DataError, match=f"1 of 1 images cannot be read: row 0: {message}") as caught:
        HuggingFace(place, size=8).load()
    assert "\n" not in str(caught.value)


def test_images_of_other_columns_are_not_opened(png):
    image, other = {"bytes": png.read_bytes(), "path": None}, {"bytes": None, "path": "/gone.png"}
    rows = {"image": [image] * 2, "other": [other] * 2}
    place = stored(png.parent / "x.parquet", rows, other=datasets.Image())
    assert len(HuggingFace(place, size=8).load().x1) == 2


def test_without_the_library_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"data\.name: hf needs datasets: pip install 'fmcore\[hf\]'"):
        HuggingFace(str(folder / "one"), size=16).load()


# --- torchvision --------------------------------------------------------------------------------------------


def test_a_set_of_torchvision_by_its_class(folder):
    data = Torchvision("ImageFolder", str(folder / "files"), size=16).load()
    theirs = torchvision.datasets.ImageFolder(folder / "files")
    assert data.names == tuple(theirs.classes) == ("bee", "cat", "owl")
    assert data.label.tolist() == theirs.targets
    for (image, _), ours in zip(theirs, data.x1, strict=True):
        file = io.BytesIO()
        image.save(file, "PNG")
        assert image.mode == "RGB"
        side = image.width
        top = round((image.height - side) / 2)
        if (image.height - side) % 2 == 0:  # else Pillow crops at half a pixel
            x1 = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, top : top + side]
            assert torch.equal(ours, x1)


class Odd(torchvision.datasets.VisionDataset):
    """Three images whose targets are what its option says."""

    def __init__(self, root, target="text"):
        super().__init__(root)
        self.target = target

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = Image.new("L", (8, 8), 10 * index) if self.target != "tensors" else torch.zeros(1, 8, 8)
        return image, {"text": "a caption", "numbers": 2 - index}.get(self.target)


def test_targets_that_are_no_classes_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Odd", Odd, raising=False)
    data = Torchvision("Odd", str(tmp_path), size=8, channels=1).load()
    assert data.label is None
    assert "no classes: Odd has targets of type str" in data.notes
    data = Torchvision("Odd", str(tmp_path), {"target": "numbers"}, size=8, channels=1).load()
    assert data.names == ("0", "1", "2")
    assert data.label.tolist() == [2, 1, 0]
    assert data.x1[:, 0, 0, 0].tolist() == [0, 10, 20]
    with pytest.raises(DataError, match=r"3 of 3 images cannot be read: sample 0: cannot be identified"):
        Torchvision("Odd", str(tmp_path), {"target": "tensors"}, size=8, channels=1).load()


class Broken(torchvision.datasets.VisionDataset):
    """What its option says fails."""

    def __init__(self, root, what="length"):
        if what == "module":
            raise ModuleNotFoundError("No module named 'lmdb'")
        if what == "key":
            raise KeyError("split")
        if what == "nothing":
            raise AssertionError

    def __len__(self):
        raise NotImplementedError("\nno length\nat all")


BROKEN = {
    "module": r"data\.dataset: Broken needs what is not installed: No module named 'lmdb'",
    "key": r"data\.root: Broken could not be read from .*: 'split'",
    "nothing": r"data\.root: Broken could not be read from .*: AssertionError",
    "length": r"data\.root: Broken could not be read from .*: no length$",
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_a_set_raises_is_one_line(tmp_path, monkeypatch, what):
    monkeypatch.setattr(torchvision.datasets, "Broken", Broken, raising=False)
    with pytest.raises(DataError, match=BROKEN[what]) as caught:
        Torchvision("Broken", str(tmp_path), {"what": what}, size=8).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["transform", "target_transform", "transforms", "loader", "is_valid_file"])
def test_options_that_are_functions_cannot_be_given(key):
    with pytest.raises(ValueError, match=f"options: {key} is a function, which cannot be given"):
        Torchvision("MNIST", "x", {key: "torch.load"}, size=8)


WRONG = {
    "base": ({"dataset": "VisionDataset"}, r"data\.dataset: VisionDataset reads no images from the disk"),
    "invented": ({"dataset": "FakeData"}, r"data\.dataset: FakeData reads no images from the disk"),
    "pickled": ({"dataset": "LSUN"}, r"data\.dataset: LSUN unpickles a file, which could run what is in it"),
    "pickles": ({"dataset": "LSUNClass"}, r"data\.dataset: LSUNClass unpickles a file"),
    "no such set": ({"dataset": "Digits"}, r"data\.dataset: torchvision\.datasets has no data set 'Digits'"),
    "no set at all": ({"dataset": "utils"}, r"data\.dataset: torchvision\.datasets has no data set 'utils'"),
    "no folder": ({"dataset": "SVHN", "root": "gone"}, r"data\.root: no folder 'gone'"),
    "not there": ({"dataset": "MNIST"}, r"data\.root: MNIST could not be read from .*: Dataset not found"),
    "an option": ({"dataset": "MNIST", "options": {"colour": 1}}, r"data\.root: MNIST could not be read .*colour"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_torchvision_cannot_read_is_named(tmp_path, name):
    changes, message = WRONG[name]
    with pytest.raises(DataError, match=message):
        Torchvision(**{"root": str(tmp_path), "size": 8, **changes}).load()
    with pytest.raises(ValueError, match="nothing is downloaded"):
        Torchvision("SVHN", str(tmp_path), {"download": True}, size=8)
