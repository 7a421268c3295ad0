"""Mistakes that the first stage finds, before anything is computed."""

from collections import namedtuple

import pytest
from diffusers import DDPMScheduler

from diffusers_teachers import saved, unet
from stage_runs import data_of, notes, points, run, small, tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base__teacher": "nowhere"}, "nowhere: expected a diffusers model"),
        (
            {
                "base__teacher": "teacher",
                "data": {"name": "mnist", "root": "none", "download": True, "held_out": 0.0},
            },
            r"base.teacher: teacher makes samples of shape \(1, 8, 8\), but those of data.name mnist have",
        ),
        (
            {"base__teacher": "teacher", "conditional": True},
            "conditional: true, but base.teacher teacher has no classes",
        ),
        (
            {
                "reflow__distance": {
                    **{"name": "lpips", "backbone": "none.pth", "linear": "none.pth", "size": 32},
                    **{"huber": True, "over_noise": False, "scale": 0.001},
                }
            },
            "reflow.distance: .*none.pth",
        ),
    ],
)
def test_a_mistake_is_found_by_the_first_stage(change, message, folder):
    saved(folder / "teacher", unet(), DDPMScheduler())
    params = tiny(**change)
    with pytest.raises(ValueError, match=message):
        list(run(params, "check"))


ARRAYS = {"name": "arrays", "root": "mine.npy", "shape": [2], "array": None, "values": "standardised"}
ARRAYS |= {"labels": "reports/labels.csv", "group": None, "held_out": 0.1}


@pytest.mark.parametrize(
    ("change", "key", "out"),
    [
        ({"data": data_of("dataset")}, "data.root", "dataset"),
        ({"data": data_of("models/base/x/")}, "data.root", "models/base"),
        ({"data": data_of("linked")}, "data.root", "dataset"),
        ({"data": data_of("linked/to/more")}, "data.root", "dataset"),
        ({"data": data_of("mine/../scores/r1")}, "data.root", "scores/r1"),
        ({"base__teacher": "models/base"}, "base.teacher", "models/base"),
        ({"data": ARRAYS, "features__extractor": "none"}, "data.labels", "reports"),
    ],
)
def test_no_file_of_the_user_s_lies_where_dvc_would_delete_it(change, key, out, folder):
    (folder / "reports").mkdir()
    (folder / "reports/labels.csv").touch()
    (folder / "linked").symlink_to("dataset")
    with pytest.raises(ValueError, match=rf"^{key}: expected a place apart from {out}, which DVC removes before"):
        list(run(tiny(**change), "check"))


@pytest.mark.parametrize("place", [".", "..", "up"])
def test_no_folder_of_the_user_s_holds_what_the_stages_make(place, folder):
    (folder / "up").symlink_to(folder.parent)
    with pytest.raises(
        ValueError, match=r"^data\.root: expected a place apart from what the stages make, .* holds"
    ):
        list(run(tiny(data=data_of(place)), "check"))


def test_pairs_that_the_disk_has_no_room_for_are_told_first(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9))
    assert notes(run(tiny(couple__pairs=1_000_000, couple__dtype="uint8"), "check"))
    with pytest.raises(
        OSError, match=r"no space for the couplings of r1: it needs 5\.12 GB, .* has 1\.00 GB free"
    ):
        list(run(tiny(couple__pairs=10_000_000), "check"))


def test_beside_what_the_stages_make_is_no_harm(folder):
    saved(folder / "models/mine", unet(), DDPMScheduler())
    assert notes(run(tiny(base__teacher="models/mine"), "check"))


def test_a_network_that_cannot_be_built_is_found_by_the_first_stage():
    deep = {
        "name": "unet",
        "channels": [8, 8, 8, 8, 8],
        "layers": 1,
        "attention": False,
        "dropout": 0.0,
        "patch": 1,
    }
    for section in ("reflow", "distill"):
        with pytest.raises(
            ValueError, match=rf"^{section}.network: unet with 5 levels needs sides divisible by 16"
        ):
            list(run(tiny(**{f"{section}__network": deep}), "check"))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"block": "block9"}, "expected a block of block1, got 'block9'"),
        ({"block": "block1", "pooled": True}, "block1 has no positions to average over"),
        ({"block": "mid_block", "teacher": True}, None),
        ({"block": "block1", "teacher": True}, "expected a block of mid_block, .*, got 'block1'"),
    ],
)
def test_a_space_that_the_base_does_not_have_is_found_by_the_first_stage(space, message, folder):
    saved(folder / "teacher", unet(), DDPMScheduler())
    teacher = {"base__teacher": "teacher"} if space.pop("teacher", False) else {}
    params = tiny(**teacher, distill__ending__spaces=[{"name": "hidden", "t": 0.5, "pooled": False, **space}])
    if message is None:
        list(run(params, "check"))
        return
    with pytest.raises(ValueError, match=rf"^distill\.ending\.spaces: {message}"):
        list(run(params, "check"))
    if teacher:
        return
    of_map = {"name": "shortcut", "distance": {"name": "squared"}, "diagonal": 0.5}
    ending = params.model_dump()["distill"]["ending"]
    match = {key: ending[key] for key in ("at_noise", "start", "weight", "real", "spaces")}
    with pytest.raises(ValueError, match=rf"^distill\.ending\.match\.spaces: {message}"):
        list(run(tiny(distill__ending={**of_map, "match": match}), "check"))


def test_points_have_no_8_bit_samples():
    with pytest.raises(
        ValueError, match=r"couple\.dtype: expected float32 or float16 for what is no image, got uint8"
    ):
        points(couple__dtype="uint8")


def test_a_warm_up_longer_than_its_training_is_said():
    train = {**small(2000), "warmup_images": 10_000}
    said = notes(run(tiny(reflow__train=train), "check"))
    assert (
        "reflow.train: the warm-up of 10,000 images is longer than the training of 2,000, which ends at 20% of lr"
    ) in said
    assert not any("warm-up" in line for line in notes(run(tiny(), "check")))
