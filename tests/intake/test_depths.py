"""Transparency, 16 bits and many channels in a folder of images."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from fmcore.disk.dataset import DataError
from fmcore.intake.images import Images
from image_files import deep, picture, save


def test_hidden_colours_are_never_seen(tmp_path):
    random = np.random.default_rng(0)
    for i in range(20):
        pixels = random.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        pixels[:, :, 3] = 255 * (np.arange(8) < 4)
        save(tmp_path / f"{i}.png", pixels)
    for background, behind in (("white", 255), ("black", 0)):
        data = Images(root=str(tmp_path), size=8, background=background).load()
        assert (data.x1[:, :, :, 4:] == behind).all()
        assert (data.x1[:, :, :, :4] != behind).any()
        assert data.notes == (f"20 of 20 are transparent in part and lie on {background}",)
        assert data.about["done"] == {"transparent": 20}
        assert data.about["background"] == background


@pytest.mark.parametrize(("top", "white"), [(100, 255), (1023, 1023), (4095, 4095), (3000, 4095), (65535, 65535)])
def test_the_range_of_scans_is_found_over_all_of_them(tmp_path, top, white):
    stored = deep(tmp_path, top)
    data = Images(root=str(tmp_path), size=8, channels=1).load()
    assert (data.x1[:, 0].long() - 255 * stored / white).abs().max() <= 0.5
    assert data.notes == (f"3 of 3 have 16 bits a channel, of which {white} is white",)
    assert data.about["levels"] == white


def test_a_stated_range_is_kept_and_what_is_beyond_is_said(tmp_path):
    stored = deep(tmp_path, 4095)
    data = Images(root=str(tmp_path), size=8, channels=1, levels=1000).load()
    assert (data.x1[:, 0].long() - (255 * stored / 1000).clamp(max=255)).abs().max() <= 0.5
    assert data.notes[1] == "3 of 3 have values over 1000, which are cut to white"


def test_hidden_values_do_not_set_the_range(tmp_path):
    pixels = np.full((8, 8, 4), 500, np.uint16)
    pixels[:4, :, :3] = 65535
    pixels[:, :, 3] = 65535 * (np.arange(8) >= 4)[:, None]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    data = Images(root=str(tmp_path), size=8, channels=1).load()
    assert data.about["levels"] == 511
    assert (data.x1[0, 0, :4] == 255).all()
    assert (data.x1[0, 0, 4:] == round(500 / 511 * 255)).all()


def five(folder, write):
    """Three tiles of five channels, written as `write` does, and their values (N, 5, H, W)."""
    stored = np.random.default_rng(2).integers(0, 256, (3, 5, 6, 8)).astype(np.uint8)
    for i, tile in enumerate(stored):
        write(folder / f"{i}.tif", tile)
    return torch.from_numpy(stored)


def as_samples(path, tile):
    tifffile.imwrite(path, tile.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")


def as_planes(path, tile):
    tifffile.imwrite(path, tile, photometric="minisblack", planarconfig="separate", compression="zlib")


def as_imagej(path, tile):
    tifffile.imwrite(path, tile, imagej=True, metadata={"axes": "CYX"})


def as_ome(path, tile):
    tifffile.imwrite(path, tile, ome=True, metadata={"axes": "CYX"})


def as_pages(path, tile):
    tifffile.imwrite(path, tile, photometric="minisblack", metadata=None)


@pytest.mark.parametrize("write", [as_samples, as_planes, as_imagej, as_ome, as_pages])
def test_tiffs_of_any_number_of_channels_are_read(tmp_path, write):
    stored = five(tmp_path, write)
    data = Images(root=str(tmp_path), size=(6, 8), channels=5).load()
    assert torch.equal(data.x1, stored)
    assert data.notes == (("3 of 3 hold their channels as pages",) if write is as_pages else ())
    has = "1 channels and 5 pages" if write is as_pages else "5 channels"
    with pytest.raises(DataError, match=rf"3 of 3 images cannot be read: .*0.tif: has {has}, expected 4"):
        Images(root=str(tmp_path), size=8, channels=4).load()
    small = Images(root=str(tmp_path), size=4, channels=5).load().x1
    alone = torch.from_numpy(np.stack([_cropped(stored[0, c].numpy(), 4) for c in range(5)]))
    assert torch.equal(small[0], alone)


def _cropped(plane, side):
    return np.asarray(ImageOps.fit(Image.fromarray(plane), (side, side), method=Image.Resampling.LANCZOS))


def test_the_first_of_a_stack_is_taken_and_said(tmp_path):
    stack = np.random.default_rng(3).integers(0, 256, (4, 5, 8, 8)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    data = Images(root=str(tmp_path), size=8, channels=5).load()
    assert torch.equal(data.x1[0], torch.from_numpy(stack[0]))
    assert data.notes == ("1 of 1 hold several frames or pages, of which the first is taken",)


def test_other_files_of_many_channels_are_refused(tmp_path):
    picture(tmp_path / "a.png", mode="RGBA", colour=(1, 2, 3, 4))
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((8, 8, 5), np.float32), photometric="minisblack")
    with pytest.raises(DataError, match="2 of 2 images") as caught:
        Images(root=str(tmp_path), size=8, channels=4).load()
    assert "a.png: has 3 channels, expected a TIFF of 4" in str(caught.value)
    assert "b.tif: has values of type float32, expected 8 or 16 bits" in str(caught.value)


@pytest.mark.parametrize("cut", [10, 200, 500])
def test_a_cut_off_tiff_of_many_channels_is_refused(tmp_path, cut):
    as_samples(tmp_path / "a.tif", np.full((5, 20, 20), 7, np.uint8))
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:-cut])
    with pytest.raises(DataError, match=r"a\.tif"):
        Images(root=str(tmp_path), size=8, channels=5).load()
