"""Data sets: shapes, ranges, determinism, and an error that names what is wrong."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from fmcore.disk.dataset import DataError
from fmcore.intake.images import MAX_PIXELS, Images
from fmcore.intake.known import Digits
from fmcore.intake.points import POINTS_HELD_OUT, Checkerboard, EightGaussians, Moons
from fmcore.intake.sets import DATA

BUNDLED = {name: kind for name, kind in DATA.items() if "root" not in kind.__dataclass_fields__}
POINTS = {name: kind for name, kind in BUNDLED.items() if "count" in kind.__dataclass_fields__}
TORCHVISION = {name: kind for name, kind in DATA.items() if "download" in kind.__dataclass_fields__}


# --- sets that ship with the package ------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_load_the_same_each_time(name):
    config = BUNDLED[name]()
    first, second = config.load(), config.load()
    assert torch.equal(first.x1, second.x1)
    assert torch.equal(first.reference, second.reference)
    assert first.x1.dtype == torch.float32
    assert torch.isfinite(first.x1).all()
    assert first.shape == tuple(first.x1.shape[1:]) == tuple(first.reference.shape[1:])
    assert (first.label is None) == (first.num_classes is None)


@pytest.mark.parametrize("name", POINTS)
def test_points_are_as_many_as_asked_and_the_reference_is_drawn_apart(name):
    data = POINTS[name](count=3000).load()
    assert data.x1.shape == (3000, 2)
    assert data.reference.shape == (POINTS_HELD_OUT, 2)
    assert not set(map(tuple, data.x1.tolist())) & set(map(tuple, data.reference.tolist()))
    for i in range(2):
        assert stats.ks_2samp(data.x1[:, i].numpy(), data.reference[:, i].numpy()).pvalue > 1e-3
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        POINTS[name](count=0)


def test_checkerboard_is_uniform_on_its_dark_squares():
    x = Checkerboard(count=20_000).load().x1
    assert x.abs().max() <= 4
    column, row = ((x + 4) / 2).floor().clamp(0, 3).long().unbind(1)
    assert ((column + row) % 2 == 0).all(), "a point lies on a light square"
    counts = torch.bincount(4 * row + column, minlength=16)
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 1e-3
    assert (counts > 0).sum() == 8
    assert stats.kstest((x[:, 0] / 2 % 1).numpy(), "uniform").pvalue > 1e-3


def test_eight_gaussians_lie_on_a_circle_of_radius_three():
    x = EightGaussians(count=20_000).load().x1.double()
    centres = 3 * torch.tensor([[np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)] for k in range(8)])
    gap, nearest = torch.cdist(x, centres).min(1)
    assert stats.chisquare(torch.bincount(nearest, minlength=8).numpy()).pvalue > 1e-3
    assert stats.kstest((gap / 0.2).numpy(), "rayleigh").pvalue > 1e-3


def test_moons_are_centred_and_congruent():
    x = Moons(count=20_000).load().x1
    assert x.mean(0).abs().max() < 0.03
    # A half turn about the centre maps each moon to the other.
    for i in range(2):
        assert stats.ks_2samp(x[:, i].numpy(), -x[:, i].numpy()).pvalue > 1e-3
    upper = torch.stack([x[:, 0] / 2 + 0.5, x[:, 1] / 2 + 0.25], 1)
    lower = torch.stack([1 - upper[:, 0], 0.5 - upper[:, 1]], 1)
    off = torch.minimum((upper.norm(dim=1) - 1).abs(), (lower.norm(dim=1) - 1).abs())
    assert off.quantile(0.99) < 0.06 * 3


def test_digits_are_the_seventeen_grey_levels():
    data = Digits().load()
    assert data.x1.shape == (1797, 1, 8, 8)
    assert data.x1.unique().tolist() == [k / 8 - 1 for k in range(17)]
    assert (data.num_classes, set(data.label.tolist())) == (10, set(range(10)))
    assert torch.bincount(data.label).min() > 170


# --- torchvision's layout -----------------------------------------------------------------------------------


def idx(values):
    """Bytes of LeCun's idx format."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    return head + values.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_like(tmp_path):
    """A root in which torchvision finds MNIST and Fashion-MNIST of seven images."""
    images = np.arange(7 * 28 * 28).reshape(7, 28, 28) % 251
    for kind in ("MNIST", "FashionMNIST"):
        raw = tmp_path / kind / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(7)))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_torchvision_sets_are_read_as_pixels(mnist_like, name):
    config = DATA[name](root=str(mnist_like))
    data = config.load()
    assert data.x1.shape == (7, 1, 28, 28)
    assert data.x1.dtype == torch.uint8
    assert data.x1.flatten().tolist() == [k % 251 for k in range(7 * 28 * 28)]
    assert data.label.tolist() == list(range(7))
    assert data.num_classes == 10


@pytest.mark.parametrize("part", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_truncated_torchvision_file_is_an_error_in_one_line(mnist_like, part):
    path = mnist_like / "MNIST" / "raw" / part
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"data\.root: MNIST could not be read"):
        DATA["mnist"](root=str(mnist_like)).load()


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_missing_root_is_named(tmp_path, name):
    with pytest.raises(DataError, match=r"data\.root: no folder .*nowhere'; .* or data\.download: true"):
        TORCHVISION[name](root=str(tmp_path / "nowhere")).load()


@pytest.mark.parametrize("name", TORCHVISION)
def test_an_empty_root_is_named(tmp_path, name):
    with pytest.raises(DataError, match=r"data\.root: \w+ could not be read from") as caught:
        TORCHVISION[name](root=str(tmp_path)).load()
    assert "\n" not in str(caught.value)


# --- a folder of images -------------------------------------------------------------------------------------


def picture(path, size=(12, 8), colour=(200, 100, 50), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


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
    x1 = Images(root=str(tmp_path), size=8, grey=True).load().x1
    assert x1.shape == (1, 1, 8, 8)
    assert (x1 == 76).all()  # 0.299 * 255, ITU-R 601


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (Images(root=str(tmp_path), size=8, grey=True).load().x1.int() - 128).abs().max() <= 1


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
    for suffix in ("png", "jpg", "webp", "bmp"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format="JPEG" if suffix == "jpg" else suffix.upper())
        (folder / f"truncated.{suffix}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    Image.fromarray(noise).save(folder / "gif.png", format="GIF")
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
    with pytest.raises(ValueError, match="size must be at least 4 pixels, got 3"):
        Images(root=str(tmp_path), size=3)
