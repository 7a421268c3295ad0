"""Pictures show the samples they are given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fmcore.pictures import (
    EXTENT,
    INK,
    RANGE,
    animation,
    clear_tile,
    dots,
    enlarged,
    image_grid,
    plotted,
    png,
    sample_picture,
    scatter,
    tile,
)

RAMP = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1) * 50


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [1, 2, 5, 8])
def test_tile_puts_every_image_in_its_place(channels, columns):
    sheet = tile(RAMP.expand(5, channels, 3, 4), columns)
    rows = -(-5 // columns)
    assert sheet.shape == (rows * 4 + 1, columns * 5 + 1, channels)
    for i in range(5):
        top, left = 4 * (i // columns) + 1, 5 * (i % columns) + 1
        assert (sheet[top : top + 3, left : left + 4] == 50 * i).all()
    drawn = sum(int((sheet[:, :, 0] == 50 * i).sum()) for i in range(5))
    assert drawn == 5 * 12
    assert int((sheet[:, :, 0] == 255).sum()) == sheet.shape[0] * sheet.shape[1] - drawn


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_lies_between_clear_tiles(channels):
    sheet = clear_tile(RAMP.expand(5, channels, 3, 4), 2)
    plain = tile(RAMP.expand(5, 3, 3, 4), 2)
    there = sheet[:, :, 3] == 255
    assert there.sum() == 5 * 12
    assert torch.equal(sheet[there][:, :3], plain[there])
    assert (sheet[~there] == 0).all()


def test_dots_lie_where_the_points_are():
    points = torch.tensor([[0.0, 0.0], [-4.0, 3.0], [-4.0, 3.0], [99.0, 0.0]])
    sheet = dots(points, 100, "#102030", opacity=0.5)
    shades = sheet[:, :, 3]
    assert (shades > 0).sum() == 2 * 4  # two dots of 2x2; the last point is out of sight
    assert (sheet[shades > 0][:, :3] == torch.tensor([16, 32, 48])).all()
    for (x, y), shade in (((0.0, 0.0), 128), ((-4.0, 3.0), 191)):  # two dots over each other are denser
        row, column = (1 - y / EXTENT) * 50, (1 + x / EXTENT) * 50
        assert (shades[round(row) - 1 : round(row) + 1, round(column) - 1 : round(column) + 1] == shade).all()


def test_png_and_enlarging_keep_every_pixel():
    sheet = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    with Image.open(io.BytesIO(png(enlarged(sheet, 3)))) as image:
        assert image.mode == "RGBA"
        pixels = np.asarray(image)
    assert pixels.shape == (6, 9, 4)
    for dy in range(3):
        assert (pixels[dy::3, dy::3] == sheet.numpy()).all()


def test_an_animation_shows_its_frames_for_their_time_and_loops():
    frames = [torch.zeros(6, 8, 4, dtype=torch.uint8) for _ in range(5)]
    for i, frame in enumerate(frames):
        frame[i, :] = torch.tensor([40 * i, 0, 200, 255])
    data = animation(frames, [0.5, 0.1, 0.1, 0.1, 1.0], 10_000)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == ("GIF", 5, 0)
        for i, lasting in enumerate([500, 100, 100, 100, 1000]):
            image.seek(i)
            assert image.info["duration"] == lasting
            assert (np.asarray(image.convert("RGBA"))[i] == [40 * i, 0, 200, 255]).all()
            assert int((np.asarray(image.convert("RGBA"))[:, :, 3] > 0).sum()) == 8  # the frame before is gone


def test_tile_keeps_images_upright():
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3)
    assert torch.equal(tile(image, 1, gap=0)[:, :, 0], image[0, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_on_disk(tmp_path, channels):
    samples = torch.stack([torch.full((channels, 8, 8), v) for v in (-1.0, 0.0, 1.0)])
    image_grid(samples, tmp_path / "new" / "grid.png", columns=2, side=16)
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.format == "PNG"
        assert image.mode == ("L" if channels == 1 else "RGB")
        pixels = np.asarray(image)
    assert pixels.shape[:2] == (2 * 19, 2 * 19)
    assert [int(np.median(pixels[y : y + 16, x : x + 16])) for y, x in ((2, 2), (2, 20), (20, 2))] == [0, 128, 255]


def test_scatter_shows_where_the_points_are(tmp_path):
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    points[0], points[1] = torch.tensor([-4.0, -4.0]), torch.tensor([4.0, 4.0])
    scatter(points, tmp_path / "points.png")
    with Image.open(tmp_path / "points.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = np.argwhere(pixels[:, :, 2] - pixels[:, :, 0] > 40)
    height, width = pixels.shape[:2]
    assert len(blue) > 50
    assert abs(np.median(blue[:, 0]) / height - 0.5) < 0.1
    assert abs(np.median(blue[:, 1]) / width - 0.5) < 0.1


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 8, 8)])
def test_pictures_are_the_same_bytes_each_time(tmp_path, shape):
    samples = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    for name in ("a.png", "b.png"):
        sample_picture(samples, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("channels", "shown"), [(2, 1), (4, 3), (5, 3)])
def test_of_many_channels_the_first_are_shown(tmp_path, channels, shown):
    samples = torch.randn(12, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    sample_picture(samples, tmp_path / "all.png")
    sample_picture(samples[:, :shown], tmp_path / "shown.png")
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "shown.png").read_bytes()


@pytest.mark.parametrize("at", [(0, 1), (2, 3), (3, 4)])
def test_points_of_more_coordinates_are_shown_by_pairs(at):
    points = torch.full((1, 5), 1e9)  # outside of every picture
    assert not plotted(points, 200, INK).any()
    points[0, list(at)] = torch.tensor([1.0, -2.0])
    hit = plotted(points, 200, INK)[:, :, 3].nonzero()
    panel = {(0, 1): (0, 0), (2, 3): (0, 1), (3, 4): (1, 0)}[at]
    assert (hit // 100).unique(dim=0).tolist() == [list(panel)]
    row, column = (hit % 100).double().mean(0).tolist()
    assert column / 100 == pytest.approx((1 / RANGE + 1) / 2, abs=0.03)
    assert row / 100 == pytest.approx((2 / RANGE + 1) / 2, abs=0.03)


def test_series_are_lines_at_their_height():
    series = torch.stack([torch.full((1, 40), 0.0), torch.full((1, 40), 2.0)])
    sheet = plotted(series, 200, INK)[:, :, 3] > 0
    for i, level in enumerate((0.0, 2.0)):
        cell = sheet[1:50, 1 + 50 * i : 50 + 50 * i]
        assert cell.any(0).all(), "the line has a hole"
        assert float(cell.nonzero()[:, 0].double().mean()) == pytest.approx((1 - level / RANGE) / 2 * 48, abs=1)
    steep = plotted(torch.linspace(-3, 3, 3).view(1, 1, 3).repeat(1, 2, 1), 200, INK)[:50, :50, 3] > 0
    assert (steep.any(1).sum() > 35) & steep.any(0)[1:].all(), "a steep line has a hole"


def test_a_histogram_is_as_high_as_values_are_many():
    values = torch.cat([torch.full((100,), -2.0), torch.full((50,), 2.0)])[:, None]
    height = (plotted(values, 200, INK)[:, :, 3] > 0).sum(0)
    assert (height > 0).sum() == 8
    assert int(height[:100].max()) == pytest.approx(2 * int(height[100:].max()), rel=0.02)


def test_arrays_are_colours_around_grey():
    arrays = torch.stack([torch.zeros(4, 2, 2), torch.full((4, 2, 2), 1e3)])
    sheet = plotted(arrays, 200, INK)
    assert sheet[1, 1].tolist() == [128, 128, 128, 255]
    assert sheet[1, 4].tolist() == [255, 255, 255, 255]


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 8)])
def test_every_kind_of_sample_has_a_picture(tmp_path, shape):
    sample_picture(torch.randn(20, *shape), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert len(set(image.convert("L").tobytes())) > 1
