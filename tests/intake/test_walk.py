"""A walk through a folder: what is an image, what is left out and why, links, pipes, odd names, splits."""

import os
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcore.intake.walk import FolderError, found, natural, shown, training_part


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def names(there):
    return [str(path.relative_to(there.root)) for path in there.images]


HIDDEN = (
    "cat/.ipynb_checkpoints/0.png",
    ".thumbnails/a.png",
    "__MACOSX/cat/a.png",
    "cat/._a.png",
    ".hidden.png",
    "@eaDir/a.png",
    "Thumbs.db",
    ".DS_Store",
    "cat/.DS_Store",
)


def test_hidden_names_and_those_of_systems_are_left_out_and_counted(tmp_path):
    there = found(touch(tmp_path, "cat/a.png", "dog/b.png", *HIDDEN))
    assert names(there) == ["cat/a.png", "dog/b.png"]
    singles = (".ipynb_checkpoints/", ".thumbnails/", "__MACOSX/", "._*", ".hidden.png", "@eaDir/", "Thumbs.db")
    assert there.hidden == {".DS_Store": 2, **dict.fromkeys(singles, 1)}
    assert there.others == {}


def test_a_root_that_is_hidden_itself_is_walked(tmp_path):
    assert names(found(touch(tmp_path / ".cache", "a.png"))) == ["a.png"]


def test_other_suffixes_are_counted(tmp_path):
    there = found(touch(tmp_path, "a.PNG", "b.tif", "b.TIFF", "c.heic", "d.HEIC", "notes", "e.txt"))
    assert names(there) == ["a.PNG", "b.TIFF", "b.tif"]
    assert there.others == {"": 1, ".heic": 2, ".txt": 1}


def test_the_order_is_natural_and_files_come_before_folders(tmp_path):
    wanted = ["2.png", "10.png", "a.png", "b/1.png", "b/2/x.png", "b/10/x.png", "c2/1.png", "c10/1.png"]
    mixed = random.Random(0).sample(wanted, len(wanted))
    assert names(found(touch(tmp_path, *mixed))) == wanted


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8)))
def test_natural_is_an_order_of_any_names(texts):
    ordered = sorted(texts, key=natural)
    assert sorted(reversed(texts), key=natural) == ordered
    assert sorted(map(str, range(200)), key=natural) == [str(i) for i in range(200)]
    assert sorted(["2" * 5000, "1" * 5000, "3"], key=natural)[0] == "3"


def test_folders_without_an_image_are_told(tmp_path):
    there = found(touch(tmp_path, "cat/a.png", "eel/deep/er/x.txt", "cat/raw/x.txt"))
    assert there.empty == ("cat/raw", "eel")


# --- links ------------------------------------------------------------------------------------------------------


def test_a_link_to_a_class_folder_is_followed(tmp_path):
    touch(tmp_path / "pool", "kittens/1.png", "kittens/2.png")
    root = touch(tmp_path / "root", "dog/1.png")
    (root / "cat").symlink_to("../pool/kittens")
    there = found(root)
    assert names(there) == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert there.linked == ("cat/",)
    assert there.unfollowed == ()


def test_loops_and_links_into_the_tree_are_told_and_not_followed(tmp_path):
    root = touch(tmp_path / "root", "cat/1.png", "dog/1.png")
    touch(tmp_path, "beside.png")
    links = {"cat/loop": ".", "cat/up": "..", "dog/out": "../..", "kitten": "cat", "around": "around"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    there = found(root)
    assert names(there) == ["cat/1.png", "dog/1.png"]
    assert [line.partition(" ")[0].rstrip(":") for line in there.unfollowed] == sorted(links)


def test_one_folder_outside_is_entered_once(tmp_path):
    pool = touch(tmp_path / "pool", "1.png", "deep/2.png")
    (pool / "deep/again").symlink_to(pool)
    root = touch(tmp_path / "root", "x/3.png")
    for name, target in {"a": pool, "b": pool, "c": pool / "deep"}.items():
        (root / name).symlink_to(target)
    there = found(root)
    assert names(there) == ["a/1.png", "a/deep/2.png", "x/3.png"]
    assert there.linked == ("a/",)
    assert len(there.unfollowed) == 3


def test_links_to_images_are_images_unless_those_are_there_anyway(tmp_path):
    """As DVC and git-annex leave them: every file a link to one with another name, elsewhere or hidden."""
    root = touch(tmp_path / "root", "cat/1.png", ".store/0f3a")
    touch(tmp_path, "cache/ab12")
    for name, target in {
        "dog/1.png": "../../cache/ab12",
        "dog/2.png": "../../cache/ab12",  # two names of equal content
        "dog/3.png": "../.store/0f3a",
        "dog/again.png": "../cat/1.png",
        "notes.txt": "../cache/ab12",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target)
    there = found(root)
    assert names(there) == ["cat/1.png", "dog/1.png", "dog/2.png", "dog/3.png"]
    assert there.linked == ("dog/1.png", "dog/2.png", "dog/3.png")
    assert there.unfollowed == ("dog/again.png (leads to an image that is there anyway)",)
    assert there.others == {".txt": 1}


def test_links_that_lead_nowhere_are_told(tmp_path):
    root = touch(tmp_path, "a.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "cat").symlink_to("nowhere")
    there = found(root)
    assert there.refused == ("gone.png: a link that leads nowhere",)
    assert there.unfollowed == ("cat: a link that leads nowhere",)


# --- what cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
def test_pipes_and_sockets_are_named_and_never_opened(tmp_path, monkeypatch):
    root = touch(tmp_path, "a.png")
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe.txt")
    (root / "link.png").symlink_to("pipe.png")
    monkeypatch.chdir(root)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.jpg")
        there = found(root)
    assert names(there) == ["a.png"]
    assert [line.partition(":")[0] for line in there.refused] == ["link.png", "pipe.png", "socket.jpg"]
    assert all("a pipe" in line for line in there.refused)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root = touch(tmp_path, "a.png", "cat/b.png")
    list_of = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return list_of(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert found(root).refused == ("cat: cannot be listed: Permission denied",)


def test_names_that_are_not_utf8_are_read_and_can_be_printed(tmp_path):
    path = os.fsencode(tmp_path) + b"/gr\xfcn.png"
    with open(path, "wb"):
        pass
    (there,) = found(tmp_path).images
    assert os.fsencode(there) == path
    assert shown(there.name) == r"gr\xfcn.png"
    assert shown("a\nb\x1b[31m\u202e.png") == r"a\nb\x1b[31m\u202e.png"
    assert shown("照片 ü.png") == "照片 ü.png"


# --- splits -----------------------------------------------------------------------------------------------------


def part_of(folder, *files):
    return training_part(found(touch(folder, *files)))


@pytest.mark.parametrize("held_out", [("test",), ("val", "test"), ("Validation",), ()])
def test_a_split_is_used_as_one(tmp_path, held_out):
    files = [f"{name}/{kind}/1.png" for name in ("Train", *held_out) for kind in ("a", "b")]
    part = part_of(tmp_path, *files)
    assert part.base == tmp_path / "Train"
    assert [str(path.relative_to(tmp_path)) for path in part.images] == files[:2]
    assert part.left_out == dict.fromkeys(sorted(held_out), 2)


def test_what_lies_beside_a_split_is_left_out_of_it(tmp_path):
    part = part_of(tmp_path, "train/1.png", "test/1.png", "sheet.png")
    assert [path.name for path in part.images] == ["1.png"]
    assert part.left_out == {"": 1, "test": 1}


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "car/1.png"),  # a class of trains
        ("test/1.png",),
        ("cat/train/1.png", "dog/test/1.png"),
        ("train.png", "test.png"),
    ],
)
def test_what_is_no_split_is_taken_whole(tmp_path, files):
    part = part_of(tmp_path, *files)
    assert part.base == tmp_path
    assert len(part.images) == len(files)
    assert part.left_out == {}


@pytest.mark.parametrize(
    "tops", [("train", "test", "cat"), ("test", "cat"), ("test", "val"), ("train", "training")]
)
def test_what_may_be_a_split_or_classes_is_refused(tmp_path, tops):
    with pytest.raises(FolderError, match="parts of a split, or classes") as caught:
        part_of(tmp_path, *(f"{top}/1.png" for top in tops))
    assert all(f"{top}/" in str(caught.value) for top in tops)
    assert "\n" not in str(caught.value)
