"""Data sets that other libraries keep: their images are read as files are, their classes keep their names."""

import io
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

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


WRONG = {
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
