"""Copies among images that are scored: they are counted, within a folder and between two."""

import numpy as np
import pytest
from PIL import Image

from fmcore.cli import main


@pytest.fixture
def folders(tmp_path):
    random = np.random.default_rng(0)
    for name, distinct in (("many", 100), ("few", 20)):
        (tmp_path / name).mkdir()
        images = random.integers(0, 256, (distinct, 4, 4), dtype=np.uint8)
        for i in range(100):
            Image.fromarray(images[i % distinct]).save(tmp_path / name / f"{i:03d}.png")
    return tmp_path


def evaluated(capsys, target, against):
    assert main(["evaluate", str(target), "--against", str(against), "--extractor", "pixels"]) == 0
    return capsys.readouterr().out


def test_copies_within_a_folder_are_counted(folders, capsys):
    said = evaluated(capsys, folders / "few", folders / "many")
    assert f"{folders / 'few'}: 80 of 100 are copies of others, pixel by pixel" in said
    assert f"\n{folders / 'many'}: " not in said
    assert "too: distances" not in said


def test_a_folder_against_itself_is_told(folders, capsys):
    said = evaluated(capsys, folders / "many", folders / "many")
    assert f"100 of 100 lie in {folders / 'many'}, too: distances and errors take images as drawn apart" in said
    (folders / "part").mkdir()
    for i in range(100):
        source = folders / ("many" if i < 30 else "few") / f"{i:03d}.png"
        (folders / "part" / f"{i:03d}.png").write_bytes(source.read_bytes())
    assert f"30 of 100 lie in {folders / 'many'}, too" in evaluated(capsys, folders / "part", folders / "many")
