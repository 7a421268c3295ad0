"""What survives a kill, and what is refused before it starts."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from flows.params.reading import load_yaml, validate
from flows.workshop import workspace as work
from flows.workshop.entry import Stage
from fmcore.disk.kept import keep, keep_tensors
from repository import ROOT
from written import flip_a_bit


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


STAGE = Stage("intake", "")
PRESET = ROOT / "presets/digits.yaml"


def tiny(**changes):
    raw = load_yaml(PRESET)
    return validate(raw | changes, "test")


KEPT = {
    *(
        "step-0000000005.safetensors",
        "curve-0000000005.json",
        "step-0000000009.safetensors",
        "curve-0000000009.json",
    ),
    *("grid.json", "batch.json", "euler-0001.json", "pairs/pairs-0.safetensors"),
}


def kept(folder):
    for name in KEPT:
        if name.endswith("json"):
            keep(folder / name, "done")
        else:
            keep_tensors(folder / name, {"x0": torch.zeros(2)})


def test_work_is_found_again_and_goes_when_done(root, capsys):
    with contextlib.suppress(KeyboardInterrupt), work.workspace(STAGE, tiny()) as folder:
        kept(folder)
        (folder / ".x.1.part").write_text("torn")
        for place in ("out", "scratch"):
            (folder / place).mkdir()
            (folder / place / "file").touch()
        (folder / "samples.png").touch()
        raise KeyboardInterrupt
    with work.workspace(STAGE, tiny()) as folder:
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert left == sorted([*KEPT, "scratch/file"])
    assert not folder.exists()
    assert not capsys.readouterr().err


def damaged(path):
    flip_a_bit(path)


def linked(path):
    """What another made, which may change under one's hands."""
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


@pytest.mark.parametrize("spoil", [damaged, linked, Path.unlink])
@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("euler-0001.json", {"euler-0001.json"}),
        ("step-0000000009.safetensors", {"step-0000000009.safetensors"}),
        ("curve-0000000009.json", {"step-0000000009.safetensors", "curve-0000000009.json"}),
        ("grid.json", KEPT),
        ("batch.json", KEPT),
    ],
)
def test_what_is_damaged_or_gone_is_made_again_with_what_builds_on_it(root, name, gone, spoil, capsys):
    with contextlib.suppress(KeyboardInterrupt), work.workspace(STAGE, tiny()) as folder:
        kept(folder)
        raise KeyboardInterrupt
    spoil(folder / name)
    with work.workspace(STAGE, tiny()) as folder:
        left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert left == KEPT - gone
    said = capsys.readouterr().err
    if gone == KEPT:
        assert said.startswith("intake: all of its unfinished work is made again, since these are damaged: ")
    elif spoil is not Path.unlink or "curve" in name:
        assert (
            said.startswith(f"intake: {len(gone)} kept files are made again, since these are damaged: ")
            or len(gone) == 2
        )
    assert not list(folder.parent.glob("*.gone"))


def test_what_a_kill_left_of_a_removed_folder_goes(root):
    with work.workspace(STAGE, tiny()) as folder:
        (folder.parent / "x.12.gone").mkdir()
        (folder.parent / "x.12.gone/file").touch()
    with work.workspace(STAGE, tiny()):
        assert not list(folder.parent.glob("*.gone"))


HOLDER = """
import sys
from pathlib import Path
from flows import layout
from flows.params.reading import load_yaml, validate
from flows.workshop.entry import Stage
from flows.workshop.workspace import workspace
with workspace(Stage("intake", ""), validate(load_yaml(Path(sys.argv[1])), "test")):
    print("in", flush=True)
    made = input()
    if made:
        layout.DATASET.mkdir()
        (layout.DATASET / "data").write_text(made)
        layout.BESIDE.write_text(made)
"""


@contextlib.contextmanager
def holding(folder):
    """A process that is in the workspace of the stage until it gets a line."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(PRESET)], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == "in\n"
        yield holder


def test_two_at_once_are_refused(root, monkeypatch):
    monkeypatch.setattr(work, "BUSY_SECONDS", 0.3)
    with holding(root) as holder:
        with pytest.raises(work.BusyError, match=f"process {holder.pid}"), work.workspace(STAGE, tiny()):
            pass
        holder.communicate("\n")
    with work.workspace(STAGE, tiny()):
        pass


def test_an_experiment_waits_for_another(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "BUSY_SECONDS", 0.2)
    monkeypatch.setenv("DVC_ROOT", str(root))
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    monkeypatch.chdir(experiment)
    with holding(experiment) as holder:
        threading.Timer(1.0, holder.stdin.write, ["\n"]).start()
        threading.Timer(1.1, holder.stdin.flush).start()
        with work.workspace(STAGE, tiny()):
            assert holder.wait(10) == 0
    said = capsys.readouterr().err
    assert said == f"intake is already running (process {holder.pid}) in another experiment; waiting for it\n"


def test_what_another_experiment_made_meanwhile_is_taken_over(root, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "BUSY_SECONDS", 0.2)
    other, mine = tmp_path / "other", tmp_path / "mine"
    for folder in (other, mine):
        folder.mkdir()
    monkeypatch.chdir(mine)
    (mine / "dataset").mkdir()
    (mine / "dataset/old").touch()
    with holding(other) as holder:
        threading.Timer(1.0, holder.stdin.write, ["made once\n"]).start()
        threading.Timer(1.1, holder.stdin.flush).start()
        with (
            pytest.raises(work.TakenOver, match=r"^intake is what another experiment made meanwhile$"),
            work.workspace(STAGE, tiny()),
        ):
            raise AssertionError("it works on its own")
    assert [path.name for path in (mine / "dataset").iterdir()] == ["data"]
    assert (mine / "dataset/data").read_text() == (mine / "data.beside.json").read_text() == "made once"
    with work.workspace(STAGE, tiny()) as folder:  # who did not wait works
        assert not list(folder.iterdir())
    (kept,) = folder.parent.glob("*.kept")
    os.utime(kept, (0, 0))
    with work.workspace(STAGE, tiny()):
        assert not kept.exists()


def test_too_little_space_is_told_with_both_sizes(root, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9))
    work.need_space(root, 10**8, "pairs")
    with pytest.raises(OSError, match=r"no space for pairs: it needs 2\.00 GB, .* has 1\.00 GB free"):
        work.need_space(root, 2 * 10**9, "pairs")


def test_publishing_replaces_a_folder_whole(root):
    for text in ("old", "new"):
        finished = root / "finished"
        finished.mkdir()
        (finished / text).write_text(text)
        work.publish(finished, root / "models/base")
    assert sorted(os.listdir(root / "models/base")) == ["SHA256SUMS", "new"]
