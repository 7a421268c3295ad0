"""A folder of images as a data set: read, brought to one size, and what is said of it."""

import io
import json
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from fmcore.disk.dataset import DataError, load_dataset, save_dataset
from fmcore.intake.decoding import Levels, read_images
from fmcore.intake.images import Images
from fmcore.intake.planes import MAX_PIXELS
from fmcore.intake.reading import How
from fmcore.intake.walk import found
from image_files import deep, picture, save


def test_images_of_every_suffix_and_mode_become_one_tensor(tmp_path):
    for name in ("a.png", "b.jpg", "c.JPEG", "d.webp", "e.bmp", "deep/er/f.png"):
        picture(tmp_path / name)
    picture(tmp_path / "g.png", mode="L", colour=77)
    picture(tmp_path / "h.png", mode="RGBA", colour=(200, 100, 50, 255))
    picture(tmp_path / "i.png", mode="P", colour=3)
    (tmp_path / "notes.txt").write_text("not an image, and not asked to be one")
    config = Images(root=str(tmp_path), size=8)
    data = config.load()
    assert data.x1.shape == (9, 3, 8, 8)
    assert data.x1.dtype == torch.uint8
    assert data.label is None
    assert data.num_classes is None
    colour = torch.tensor([200, 100, 50]).reshape(3, 1, 1)
    for i in (0, 1, 2, 3, 4, 6):  # g lies before deep/er/f
        pixels = data.x1[i].int()
        assert ((pixels - colour).abs() <= 6).all() or (pixels == 77).all()
    assert (data.x1[0] == colour).all()


@pytest.mark.parametrize(("width", "height"), [(30, 10), (10, 30), (10, 10), (5, 7)])
def test_the_middle_is_cropped_after_resizing_the_shorter_side(tmp_path, width, height):
    """White with a blue band at each end of the long side: a central square crop sees no blue."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    if width > height:
        pixels[:, :8] = pixels[:, -8:] = (0, 0, 255)
    elif height > width + 5:
        pixels[:8] = pixels[-8:] = (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x1 = Images(root=str(tmp_path), size=10).load().x1
    assert x1.shape == (1, 3, 10, 10)
    assert (x1 == 255).all()


def test_grey_is_one_channel_of_luminance(tmp_path):
    picture(tmp_path / "a.png", colour=(255, 0, 0))
    x1 = Images(root=str(tmp_path), size=8, channels=1).load().x1
    assert x1.shape == (1, 1, 8, 8)
    assert (x1 == 76).all()  # 0.299 * 255, ITU-R 601


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (Images(root=str(tmp_path), size=8, channels=1).load().x1 == 128).all()


def test_subfolders_name_the_classes(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/deep/0.png", "eel/z.png"):
        picture(tmp_path / name)
    data = Images(root=str(tmp_path), size=8).load()
    assert data.num_classes == 3
    assert data.label.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("names", [("only/1.png", "only/2.png"), ("cat/1.png", "dog/2.png", "3.png")])
def test_one_subfolder_or_loose_images_are_no_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name)
    data = Images(root=str(tmp_path), size=8).load()
    assert data.label is None
    assert data.num_classes is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path, orientation):
    """The stored image is turned so that, as the tag says, red ends up top left and blue top right."""
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[:8, 8:] = (0, 0, 255)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    x1 = Images(root=str(tmp_path), size=16).load().x1[0]
    assert torch.equal(x1, torch.from_numpy(upright).permute(2, 0, 1))


def spoilt(folder):
    """One file of each kind of damage, and a good one."""
    picture(folder / "good.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "gif", "avif"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        (folder / f"truncated.{suffix}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    Image.fromarray(noise).save(folder / "ppm.png", format="PPM")
    whole = bytearray((folder / "good.png").read_bytes())
    whole[-20] ^= 0xFF
    (folder / "corrupt.png").write_bytes(whole)
    return {path.name for path in folder.iterdir()} - {"good.png"}


def test_every_unreadable_file_is_named(tmp_path):
    bad = spoilt(tmp_path)
    with pytest.raises(DataError) as caught:
        Images(root=str(tmp_path), size=8).load()
    message = str(caught.value)
    assert message.startswith(f"data.root: {len(bad)} of {len(bad) + 1} images cannot be read: ")
    assert all(str(tmp_path / name) in message for name in bad)
    assert "good.png" not in message


def test_a_long_list_of_unreadable_files_is_cut(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="30 of 30 images") as caught:
        Images(root=str(tmp_path), size=8).load()
    assert str(caught.value).count(".png:") == 20


@pytest.mark.parametrize("scale", [1.1, 3.0])
def test_a_decompression_bomb_is_refused_before_it_opens(tmp_path, scale):
    """A black 1-bit image: some kilobytes on disk, its pixels far more."""
    side = int((MAX_PIXELS * scale) ** 0.5)
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png"):
        Images(root=str(tmp_path), size=8).load()


def test_a_folder_without_images_or_none_at_all_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"no image in .*\.png, \.jpg"):
        Images(root=str(tmp_path), size=8).load()
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        Images(root=str(tmp_path / "nowhere"), size=8).load()
    with pytest.raises(DataError, match=r"a\.txt' is a file; expected a folder"):
        Images(root=str(tmp_path / "a.txt"), size=8).load()
    with pytest.raises(ValueError, match="size must be at least 4 pixels, got 3"):
        Images(root=str(tmp_path), size=3)


# --- the form and the size --------------------------------------------------------------------------------------


def ramp(height, width):
    """Grey that grows along both sides."""
    y, x = np.mgrid[:height, :width]
    return (y * 3 + x).astype(np.uint8)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_of_the_right_size_stay_as_they_are(tmp_path, fit):
    save(tmp_path / "a.png", ramp(6, 10))
    data = Images(root=str(tmp_path), size=(6, 10), channels=1, fit=fit).load()
    assert data.x1.shape == (1, 1, 6, 10)
    assert torch.equal(data.x1[0, 0], torch.from_numpy(ramp(6, 10)))
    assert data.notes == ()
    assert data.about["misfits"] == 0


def test_what_was_cropped_is_counted(tmp_path):
    save(tmp_path / "even.png", ramp(64, 64))
    save(tmp_path / "wide.png", ramp(48, 64))
    save(tmp_path / "strip.png", ramp(64, 300))
    data = Images(root=str(tmp_path), size=32, channels=1).load()
    assert data.notes == ("2 of 3 were cropped to the middle, by up to 79 % of a side (strip.png)",)
    assert (data.about["misfits"], data.about["largest_misfit"]) == (2, pytest.approx(1 - 64 / 300, abs=1e-4))


@pytest.mark.parametrize(("height", "width"), [(10, 30), (30, 10)])
def test_padding_keeps_the_whole_and_fills_with_the_background(tmp_path, height, width):
    save(tmp_path / "a.png", np.full((height, width, 3), (9, 90, 200), np.uint8))
    data = Images(root=str(tmp_path), size=30, fit="pad", background="#ff8000").load()
    middle = torch.zeros(30, 30, dtype=torch.bool)
    middle[10:20] = True
    middle = middle if width == 30 else middle.T
    assert (data.x1[0].permute(1, 2, 0)[middle] == torch.tensor([9, 90, 200])).all()
    assert (data.x1[0].permute(1, 2, 0)[~middle] == torch.tensor([255, 128, 0])).all()
    assert data.notes == ("1 of 1 were padded, up to 67 % of a side (a.png)",)


def test_stretching_keeps_the_corners(tmp_path):
    save(tmp_path / "a.png", np.repeat(np.array([[0, 255]], np.uint8), 20, 1).repeat(10, 0))
    data = Images(root=str(tmp_path), size=(20, 10), channels=1, fit="stretch").load()
    assert (data.x1[0, 0, :, :4] <= 3).all()
    assert (data.x1[0, 0, :, 6:] >= 252).all()
    assert data.notes[-1:] == ("1 of 1 were stretched, by up to 88 % less along one side (a.png)",)


def test_what_is_smaller_is_enlarged_and_counted(tmp_path):
    save(tmp_path / "a.png", ramp(8, 8))
    data = Images(root=str(tmp_path), size=16, channels=1).load()
    assert data.notes == ("1 of 1 are smaller than 16x16 and were enlarged",)


# --- what is said and kept --------------------------------------------------------------------------------------


def test_classes_are_in_natural_order_with_their_names_and_counts(tmp_path):
    for name in ("10/1.png", "9/1.png", "9/2.png", "ünd/1.png"):
        picture(tmp_path / name)
    os.rename(tmp_path / "10", os.fsencode(tmp_path) + b"/10\xff")
    data = Images(root=str(tmp_path), size=8).load()
    assert data.names == ("9", r"10\xff", "ünd")
    assert data.label.tolist() == [0, 0, 1, 2]
    assert data.about["class_counts"] == [2, 1, 1]
    assert data.notes[-1] == r"classes: 9 (2), 10\xff (1), ünd (1)"


def test_checkpoints_of_notebooks_are_no_class(tmp_path):
    for kind in ("cat", "dog"):
        for i in range(6):
            picture(tmp_path / kind / f"{i}.png")
    picture(tmp_path / ".ipynb_checkpoints/0.png")
    data = Images(root=str(tmp_path), size=8).load()
    assert (data.num_classes, len(data.x1)) == (2, 12)
    assert "left out, as hidden or left by programs: 1 .ipynb_checkpoints/" in data.notes


def test_a_split_is_said(tmp_path):
    for name in ("train/b/1.png", "train/a/1.png", "test/a/1.png", "test/b/1.png"):
        picture(tmp_path / name)
    data = Images(root=str(tmp_path), size=8).load()
    assert (data.names, data.label.tolist()) == (("a", "b"), [0, 1])
    assert data.notes[:2] == ("train/ is trained on", "2 of 4 are held out: those in test/")
    assert (data.about["part"], data.about["held_out"], data.beside["left_out"]) == ("train", 2, {})
    assert data.held_out.shape == (2, 3, 8, 8)
    data = Images(root=str(tmp_path), size=8, held_out=0.5).load()
    assert data.notes[:2] == ("train/ is trained on; left out: test/ (2 images)", "1 of 2 are held out")
    assert (len(data.x1), len(data.held_out), data.beside["left_out"]) == (1, 1, {"test": 2})


def test_a_broken_image_in_a_part_that_is_left_out_stops_nothing(tmp_path):
    for i in range(2):
        picture(tmp_path / f"train/{i}.png")
    picture(tmp_path / "test/1.png")
    (tmp_path / "test/3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read: .*test/3\.png"):
        Images(root=str(tmp_path), size=8).load()
    os.mkfifo(tmp_path / "test/2.png")
    with pytest.raises(DataError, match=r"^data\.root: 1 in .* cannot be read: test/2\.png: no file, but a pipe"):
        Images(root=str(tmp_path), size=8).load()
    assert len(Images(root=str(tmp_path), size=8, held_out=0.5).load().x1) == 1


def test_why_there_are_no_classes_is_said(tmp_path):
    picture(tmp_path / "cat/1.png")
    assert Images(root=str(tmp_path), size=8).load().notes[0] == "no classes: all images lie in cat/"
    picture(tmp_path / "dog/1.png")
    picture(tmp_path / "sheet.png")
    data = Images(root=str(tmp_path), size=8).load()
    assert data.notes[0] == "no classes, since sheet.png lie beside the folders cat, dog"
    assert data.label is data.num_classes is data.names is None


@pytest.mark.timeout(20)
def test_a_pipe_among_the_images_is_one_line(tmp_path):
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"data\.root: 1 in .* cannot be read: b\.png: no file, but a pipe"):
        Images(root=str(tmp_path), size=8).load()


def test_what_is_done_is_kept_and_what_lies_beside_changes_no_byte(tmp_path):
    """Or a file that a program left beside the images would have everything trained anew."""
    for name in ("b/1.png", "a/2.png"):
        picture(tmp_path / "raw" / name)
    config = Images(root=str(tmp_path / "raw"), size=4)
    save_dataset(tmp_path / "before", config.load(), {"name": "images"})
    (tmp_path / "raw/a/.DS_Store").write_text("")
    (tmp_path / "raw/a/notes.txt").write_text("")
    data = config.load()
    assert (data.beside["hidden"], data.beside["others"]) == ({".DS_Store": 1}, {".txt": 1})
    assert len(data.notes) == 4
    save_dataset(tmp_path / "after", data, {"name": "images"})
    kept = load_dataset(tmp_path / "after")
    assert kept.names == ("a", "b")
    assert kept.about == data.about
    assert (kept.about["misfits"], kept.about["class_counts"]) == (2, [1, 1])
    for name in ("manifest.json", "data.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert str(tmp_path) not in json.dumps([data.about, data.beside]), "the same on any machine"


def test_order_and_bytes_do_not_depend_on_the_cores(tmp_path):
    deep(tmp_path, 5000, count=7)
    for i in range(100):
        save(tmp_path / f"{i}.jpg", np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    (tmp_path / "50.png").write_bytes(b"broken")
    paths, how = found(tmp_path).images, How(3, (8, 8))
    assert [path.stem for path in paths[:3]] == ["0", "0", "1"]
    once, *more = (list(read_images(paths, how, Levels(paths, how), workers)) for workers in (1, 2, 7))
    for other in more:
        for a, b in zip(once, other, strict=True):
            assert type(a) is type(b)
            assert str(a) == str(b) if isinstance(a, Exception) else (a.pixels == b.pixels).all()


def test_a_reader_that_stops_early_leaves_no_thread(tmp_path):
    before = threading.active_count()
    for i in range(200):
        save(tmp_path / f"{i}.png", ramp(8, 8))
    paths, how = found(tmp_path).images, How(1)
    reading = read_images(paths, how, Levels(paths, how), 2)
    next(reading)
    reading.close()
    assert threading.active_count() == before


MISTAKES = {
    "size": ({"size": (2, 32)}, "size must be at least 4 pixels"),
    "channels": ({"channels": 0}, "channels must be at least 1, got 0"),
    "levels": ({"levels": 70000}, r"levels must be auto or a value in \[1, 65535\]"),
    "background": ({"background": "whit"}, "background must be a colour, e.g. white"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistaken_setting_is_one_line(case):
    changes, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        Images(**{"root": "x", "size": 8, **changes})
