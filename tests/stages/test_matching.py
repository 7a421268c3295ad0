"""The stage that trains a matched flow: what it resumes, what it keeps, and what it never looks at."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file

from diffusers_teachers import saved, unet
from fmcore.disk.files import ArtifactError, read_json
from fmcore.model import load as load_model
from stage_runs import checkpoints_at_every_record, events_of, killed_at, notes, points, run, small, tiny

TO_COUPLINGS = ("check", "base", "couple@r1")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def matched(**more):
    """From the base, so that no round need be trained."""
    return {"distill__students__student__init": "base", "distill__train": small(20_000), **more}


def digest():
    return load_model("models/student").digest


@pytest.mark.parametrize(("images", "kept"), [(5000, 2500), (17_500, 15_000), (20_000, 17_500)])
def test_killed_before_at_or_in_the_matching_it_ends_in_the_same_bytes(monkeypatch, images, kept):
    params = points(**matched())
    list(run(params, *TO_COUPLINGS, "distill@student"))
    whole = digest()
    checkpoints_at_every_record(monkeypatch)
    killed_at(events_of(params, "distill@student"), images, "student")
    again = list(run(params, "distill@student"))
    assert digest() == whole
    assert f"student: going on from step {kept // 50} of 400" in notes(again)


def test_a_flow_map_is_matched_too_and_goes_on_after_a_kill(monkeypatch):
    match = {"at_noise": 0.75, "start": 0.75, "weight": 1.5, "real": 64, "spaces": "auto"}
    ending = {"name": "meanflow", "distance": {"name": "squared"}, "diagonal": 0.5, "match": match}
    params = points(**matched(distill__ending=ending))
    list(run(params, *TO_COUPLINGS, "distill@student"))
    whole, about = digest(), read_json(Path("models/student/manifest.json"))
    assert about["ending"] == "meanflow"
    assert {space["name"] for space in about["matched"]["spaces"]} == {"hidden"}
    checkpoints_at_every_record(monkeypatch)
    killed_at(events_of(params, "distill@student"), 17_500, "student")  # in the matching
    list(run(params, "distill@student"))
    assert digest() == whole
    list(run(points(**matched(distill__ending=ending | {"match": None})), "distill@student"))
    assert digest() != whole


def test_spaces_are_said_and_stand_in_the_manifest():
    params = points(**matched())
    said = notes(run(params, *TO_COUPLINGS, "distill@student"))
    (line,) = [text for text in said if "they are matched in" in text]
    about = read_json(Path("models/student/manifest.json"))
    assert about["matched"]["base"] == load_model("models/base").digest
    for space in about["matched"]["spaces"]:
        assert f"{space['block']} at t = {space['t']:g}" in line
    student = load_model("models/student")
    assert student.k is None
    assert student.is_paired, "though it started from the base"
    assert torch.isfinite(student.sample(10, 3, precision="fp32")).all()


def test_lost_spaces_of_a_matching_that_had_begun_are_told(monkeypatch):
    params = points(**matched())
    list(run(params, *TO_COUPLINGS, "distill@student"))
    whole = digest()
    checkpoints_at_every_record(monkeypatch)
    killed_at(events_of(params, "distill@student"), 20_000, "student")
    (kept,) = Path("work/distill-student").rglob("spaces.json")
    kept.unlink()
    with pytest.raises(ArtifactError, match=r"spaces\.json was missing, .*: the same command makes it all again"):
        list(run(params, "distill@student"))
    assert notes(run(params, "distill@student"))
    assert digest() == whole


def test_the_scorer_never_enters():
    """Without features, or with others, the student is the same to the last bit."""
    params = tiny(**matched(distill__train=small(2000)))
    list(run(params, *TO_COUPLINGS, "distill@student"))
    without = digest()
    list(run(params, "features", "distill@student"))
    assert digest() == without
    shutil.rmtree("features")


@pytest.mark.parametrize("kind", ["classes", "no classes any more", "mirrored", "pixels", "teacher"])
def test_every_kind_of_base_and_data_is_matched(kind, folder):
    saved(folder / "teacher", unet(), DDPMScheduler())
    changes = {
        "classes": {"conditional": True},
        "no classes any more": {"conditional": True, "base__label_dropout": 0.2, "distill__labels": "drop"},
        "mirrored": {"flip": True, "network": {"name": "unet", "channels": [8, 16], "layers": 1}},
        "pixels": {"distill__ending__spaces": [{"name": "pixels"}]},
        "teacher": {"base__teacher": "teacher"},
    }[kind]
    if kind == "mirrored":
        changes["network"] |= {"attention": False, "dropout": 0.0, "patch": 2}
    if kind == "no classes any more":
        changes["distill__network"] = None
    params = tiny(**matched(distill__train=small(400), base__train=small(400), couple__pairs=200), **changes)
    list(run(params, *TO_COUPLINGS, "distill@student"))
    student, base = load_model("models/student"), load_model("models/base")
    assert student.num_classes == (None if "no classes" in kind else base.num_classes)
    spaces = student.manifest["matched"]["spaces"]
    if kind in ("mirrored", "teacher"):
        assert [space["pooled"] for space in spaces] == [False, True]
    elif kind == "pixels":
        assert [space["name"] for space in spaces] == ["pixels"]
    assert torch.isfinite(student.sample(4, 2, precision="fp32")).all()


def test_more_data_in_a_step_than_there_are_is_said(folder):
    save_file({"x": torch.randn(300, 2)}, folder / "x.safetensors")
    data = {"name": "arrays", "root": "x.safetensors", "shape": [2], "array": None, "values": "standardised"}
    data |= {"labels": None, "group": None, "held_out": 0.0}
    params = tiny(**matched(couple__pairs=200, distill__train=small(400)), data=data, features__extractor="none")
    said = notes(run(params, *TO_COUPLINGS, "distill@student"))
    assert "student: in each step 512 of the 300 samples are drawn, some repeatedly" in said
