"""Images that nothing is trained on: which they are, and the distance to them."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from flows import layout
from fmcore.disk.dataset import DataError, load_dataset
from fmcore.intake.huggingface import HuggingFace
from fmcore.intake.images import Images
from fmcore.intake.split import held_out
from fmcore.score.extractors import load_extractor
from fmcore.score.frechet import frechet_distance, stats
from fmcore.score.reference import load_reference
from stage_runs import data_of, run, tiny


def grey(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)


@pytest.fixture
def slides(tmp_path):
    """Eight slides of ten tiles; a tile's level says of which slide it is."""
    for slide in range(8):
        for tile in range(10):
            grey(tmp_path / f"{'ab'[slide % 2]}/slide{slide}/{tile}.png", 20 * slide)
    return tmp_path


def levels(images):
    return sorted({int(image.max()) // 20 for image in images})


def test_no_group_lies_on_both_sides(slides):
    data = Images(str(slides), size=8, channels=1, held_out=0.25, group=2).load()
    assert len(levels(data.held_out)) == 2
    assert sorted(levels(data.held_out) + levels(data.x1)) == list(range(8))
    assert (len(data.x1), len(data.held_out)) == (60, 20)
    assert data.names == ("a", "b")
    assert [level % 2 for level in (data.x1[:, 0, 0, 0] // 20).tolist()] == data.label.tolist()
    assert "20 of 80 are held out, those of 2 of 8 groups" in data.notes
    data = Images(str(slides), size=8, channels=1, held_out=0.25, group=1).load()
    assert (len(data.x1), data.label) == (40, None), "the folders at the top are groups, and no classes"


def test_a_share_of_the_images(slides):
    data = Images(str(slides), size=8, channels=1, held_out=0.1).load()
    assert (len(data.x1), len(data.held_out), len(data.label)) == (72, 8, 72)
    assert data.about["held_out"] == 8
    assert data.about["class_counts"] == torch.bincount(data.label).tolist()
    assert [level % 2 for level in (data.x1[:, 0, 0, 0] // 20).tolist()] == data.label.tolist()
    assert Images(str(slides), size=8, channels=1).load().held_out is None


REFUSED = {
    "a share above all": ({"held_out": 1.0}, r"held_out must lie in \[0, 1\), got 1.0"),
    "a group of no split": ({"group": 1}, "group is for the split, so held_out must be above 0, got 0"),
    "no level": ({"group": 0, "held_out": 0.1}, "group is a level of folders, 1 for those at the top"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_split(tmp_path, case):
    options, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        Images(str(tmp_path), size=8, **options)


def test_groups_of_rows_need_a_split_too():
    with pytest.raises(ValueError, match="group is for the split, so held_out must be above 0, got 0"):
        HuggingFace("pets", size=8, group="owner")


def test_too_few_groups_and_images_outside_of_them(slides):
    with pytest.raises(DataError, match=r"data.group: level 1 of the folders names 2 groups, too few"):
        Images(str(slides), size=8, held_out=0.9, group=1).load()
    grey(slides / "a/stray.png", 0)
    with pytest.raises(
        DataError, match=r"data.group: 1 of 81 images do not lie in a folder of level 2, e.g. a/stray"
    ):
        Images(str(slides), size=8, held_out=0.1, group=2).load()


def test_a_split_is_the_same_each_time_and_of_the_size_asked_for():
    held, told = held_out(0.3, 1000)
    assert torch.equal(held, held_out(0.3, 1000)[0])
    assert (int(held.sum()), told) == (300, ["300 of 1000 are held out"])
    assert not held_out(0.0, 10)[0].any()


@pytest.mark.parametrize("share", [0.96, 0.04])
def test_a_share_that_leaves_one_side_empty(share):
    with pytest.raises(DataError, match=rf"data.held_out: {share} of 10 samples leaves too few on one side"):
        held_out(share, 10)


def test_a_group_of_a_stored_set_without_a_split(tmp_path):
    with pytest.raises(ValueError, match="group is for the split, so held_out must be above 0, got 0"):
        HuggingFace(str(tmp_path), size=8, group="patient")


def test_the_distance_to_images_that_nothing_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for i in range(400):
        path = tmp_path / f"images/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    params = tiny(data=data_of("images", held_out=0.25), features__extractor="random")
    list(run(params, "check", "features", "base", "evaluate_base"))
    data, extractor = load_dataset(layout.DATASET), load_extractor(layout.FEATURES)
    unseen = load_reference(layout.FEATURES / "held_out.safetensors")
    assert (len(data.x1), unseen.stats.count) == (300, 100)
    assert frechet_distance(unseen.stats, stats(extractor(data.held_out))) == pytest.approx(0, abs=1e-4)
    scores = pd.read_csv(layout.scores("base") / "scores.csv")
    counts = {name: set(rows.n_reference) for name, rows in scores.groupby("metric")}
    name = extractor.metric
    assert (counts[name], counts[f"{name}_held_out"]) == ({300}, {100})
    seen, other = (scores[scores.metric == key].value for key in (name, f"{name}_held_out"))
    assert len(seen) == len(other)
    assert not np.allclose(seen, other)


def test_a_class_that_is_held_out_whole_is_said(tmp_path):
    for name in "abc":
        for i in range(4):
            grey(tmp_path / name / "one" / f"{i}.png", 20)
    data = Images(str(tmp_path), size=8, channels=1, held_out=0.3, group=2).load()
    (line,) = [line for line in data.notes if line.startswith("classes: ")]
    empty = [name for name in "abc" if f"{name} (0)" in line]
    assert line.endswith(f"; nothing is trained on {empty[0]}, all of which is held out")
