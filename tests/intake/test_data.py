"""Data sets: shapes, ranges, determinism, and an error that names what is wrong."""

import numpy as np
import pytest
import torch
from scipy import stats

from fmcore.disk.dataset import DataError
from fmcore.intake.known import Digits
from fmcore.intake.points import POINTS_HELD_OUT, Checkerboard, EightGaussians, Moons
from fmcore.intake.sets import DATA

ASKS = {"root", "autoencoder"}  # for files of the user's
BUNDLED = {name: kind for name, kind in DATA.items() if not ASKS & kind.__dataclass_fields__.keys()}
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


def test_a_share_of_a_known_set_is_held_out():
    whole, data = Digits().load(), Digits(held_out=0.2).load()
    assert (len(data.x1), len(data.held_out)) == (1438, 359)
    assert data.reference is data.x1
    assert data.notes == ("359 of 1797 are held out",)
    rows = {row.numpy().tobytes() for row in data.x1}
    assert not any(row.numpy().tobytes() in rows for row in data.held_out)
    index = [next(i for i in range(1797) if torch.equal(whole.x1[i], data.x1[j])) for j in (0, 700, 1437)]
    assert [int(whole.label[i]) for i in index] == [int(data.label[j]) for j in (0, 700, 1437)]
    assert whole.held_out is None
    with pytest.raises(ValueError, match=r"held_out must lie in \[0, 1\), got 1.0"):
        Digits(held_out=1.0)
