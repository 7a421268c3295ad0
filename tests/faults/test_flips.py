"""One flipped bit in a file: of unfinished work it is made again to the same bytes, of finished work it is named.

`make test` tries one place in one part of each file, `FMCORE_FAULTS=N` N / 5 in each of three parts.
"""

import os
import random
import re
import shutil
from pathlib import Path

import pytest

from fmcore.disk.files import ArtifactError
from fmcore.disk.sums import SUMS
from fmcore.model import load as load_model
from fmcore.score.extractors import load_extractor
from fmcore.score.reference import load_labels
from stage_runs import checkpoints_at_every_record, events_of, run, small, tiny
from written import contents, cut, empty, flip_a_bit

TIMES = int(os.environ.get("FMCORE_FAULTS", "0"))
SEED = int(os.environ.get("FMCORE_FAULTS_SEED", "0"))
BEFORE = ("check", "features", "base", "couple@r1", "reflow@r1")
MIX = {"inverted": 0.5, "until": 1.0, "slerp": 0.0, "refresh_images": 1000}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def params():
    return tiny(
        network__width=8,
        features__train=small(500),
        base__train=small(2000),
        couple__pairs=120,
        couple__batch=40,
        couple__inverted=80,
        couple__grid={"name": "optimised", "trajectories": 4},
        reflow__train=small(3000),
        reflow__mix=MIX,
        distill__train=small(3000),
        evaluate__samples=100,
        evaluate__repeats=2,
        evaluate__likelihood={"solver": "euler", "nfe": 2, "samples": 20, "probes": 1},
    )


def flipped(path, part, dice):
    """Flips a bit in the first, middle or last part of a file."""
    data = bytearray(path.read_bytes())
    edges = [0, min(len(data) // 3, 400), max(2 * len(data) // 3, len(data) - 400), len(data)]
    at = dice.randrange(edges[part], edges[part + 1])
    data[at] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    return f"{path} at byte {at} of {len(data)}"


def places(paths, seed):
    """Each path with a part of the file and a source of chance: one of each in `make test`, else many."""
    dice = random.Random(f"{SEED}/{seed}")
    for path in paths:
        for part in range(3) if TIMES else [dice.randrange(3)]:
            for _ in range(max(1, TIMES // 5)):
                yield path, part, dice


STAGES = {
    "features": (BEFORE[:1], "train features", "features"),
    "base": (BEFORE[:1], "train base", "models/base"),
    "couple@r1": (BEFORE[:3], "invert r1", "couplings/r1"),
    "reflow@r1": (BEFORE[:4], "train r1", "models/r1"),
    "distill@student": (BEFORE, "train student", "models/student"),
    "evaluate@r1": (BEFORE, "score r1", "scores/r1"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_of_unfinished_work_a_flipped_bit_changes_nothing(stage, folder, monkeypatch):
    before, title, out = STAGES[stage]
    settings = params()
    monkeypatch.setattr("flows.stages.training.RECORD_STEPS", 5)
    list(run(settings, *before, stage))
    whole = contents(folder / out)
    monkeypatch.setattr("flows.stages.shards.SHARD_BYTES", 1)  # a shard a batch
    checkpoints_at_every_record(monkeypatch)
    if stage.startswith("couple"):
        list(run(settings, stage))
        whole = contents(folder / out)
    events = events_of(settings, stage)
    for event in events:  # to nearly the end, where most is kept
        if type(event).__name__ == "Progress" and event.title == title and event.done >= 0.8 * event.total:
            break
    events.close()
    (work,) = [path for path in (folder / "work" / stage.replace("@", "-")).iterdir() if path.is_dir()]
    kept = [path for path in sorted(work.rglob("*")) if path.is_file()]
    assert kept, "nothing was kept"
    shutil.copytree(work, folder / "as it was")
    for path, part, dice in places(kept, stage):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder / "as it was", work)
        what = flipped(path, part, dice)
        list(run(settings, stage))
        assert contents(folder / out) == whole, what


READERS = {
    "features": {"evaluate@r1": "scores/r1", "report": "reports"},
    "models/base": {"couple@r1": "couplings/r1", "reflow@r1": "models/r1"},
    "couplings/r1": {"reflow@r1": "models/r1", "evaluate_pairs@r1": "scores/couplings-r1"},
    "scores/r1": {"report": "reports"},
    "dataset": {"base": "models/base", "features": "features"},
}


def test_a_flipped_bit_in_a_finished_folder_is_named_or_changes_nothing(folder):
    """It changes nothing where nobody reads it, as in the checksum of a file that another checksum covers."""
    settings = params()
    stages = [
        *BEFORE,
        "distill@student",
        *(f"evaluate{of}" for of in ("_base", "@r1", "_student@student", "_pairs@r1")),
        "report",
    ]
    list(run(settings, *stages))
    named = []
    for place, readers in READERS.items():
        paths = [path for path in sorted((folder / place).rglob("*")) if path.is_file()]
        whole = {out: contents(folder / out) for out in readers.values()}
        for path, part, dice in places(paths, place):
            before = path.read_bytes()
            what = flipped(path, part, dice)
            for reader, out in readers.items():
                try:
                    list(run(settings, reader))
                except ArtifactError as error:
                    named.append((path.name, str(error)))
                    break
                made = contents(folder / out)
                made |= {str(path.relative_to(folder / out)): before} if folder / out in path.parents else {}
                assert made == whole[out], what
            path.write_bytes(before)
    of_files = [
        (name, text) for name, text in named if name != SUMS
    ]  # of a digit there, the file it is of is named
    assert [(name, text) for name, text in of_files if not re.match(rf"\S*/{re.escape(name)}\b", text)] == []
    of_each = {name for name, _ in named}
    must = {"manifest.json", "config.json", "model.safetensors", "reference.safetensors", "extractor.safetensors"}
    assert must | {"scores.csv", "jackknife.csv", "data.safetensors", "pairs-0000000000.safetensors"} <= of_each


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty])
def test_damaged_classes_beside_features_are_named(folder, damage):
    """No stage reads them, but who scores a model by hand."""
    list(run(params(), "check", "features"))
    damage(folder / "features/labels.safetensors")
    with pytest.raises(ArtifactError, match=r"labels\.safetensors is damaged"):
        load_labels(folder / "features", 10)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("models/base/config.json", '"predicts": "velocity"', '"predicts": "v"'),
        ("models/base/manifest.json", '"rounds": 0', '"rounds": 1'),
        ("features/manifest.json", '"image_shape": [\n    1,', '"image_shape": [\n    3,'),
    ],
)
def test_an_edited_description_is_found_when_it_is_loaded(file, old, new, folder):
    settings = params()
    list(run(settings, "check", "features", "base"))
    path = Path(file)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    load = load_model if file.startswith("models") else load_extractor
    with pytest.raises(ArtifactError, match=rf"{path.name} is damaged or was edited: its SHA-256"):
        load(path.parent)
