"""What survives a kill, and what is refused before it starts."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import namedtuple

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


def test_work_is_found_again_and_goes_when_done(root, capsys):
    with contextlib.suppress(KeyboardInterrupt), work.workspace(STAGE, tiny()) as folder:
        keep(folder / "half.json", "done")
        keep_tensors(folder / "pairs/pairs-0.safetensors", {"x0": torch.zeros(2)})
        (folder / ".x.1.part").write_text("torn")
        for place in ("out", "scratch"):
            (folder / place).mkdir()
            (folder / place / "file").touch()
        (folder / "samples.png").touch()
        raise KeyboardInterrupt
    with work.workspace(STAGE, tiny()) as folder:
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert left == ["half.json", "pairs/pairs-0.safetensors", "scratch/file"]
    assert not folder.exists()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["half.json", "pairs/pairs-0.safetensors", "curve.json"])
def test_what_is_damaged_is_made_again_with_what_builds_on_it(root, name, capsys):
    def interrupted():
        with contextlib.suppress(KeyboardInterrupt), work.workspace(STAGE, tiny()) as folder:
            keep(folder / "half.json", "done")
            keep(folder / "curve.json", [1.5])
            keep_tensors(folder / "pairs/pairs-0.safetensors", {"x0": torch.zeros(2)})
            raise KeyboardInterrupt
        return folder

    flip_a_bit(interrupted() / name)
    with work.workspace(STAGE, tiny()) as folder:
        left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        whole = {"half.json", "pairs/pairs-0.safetensors", "curve.json"}
        assert left == (set() if name == "curve.json" else whole - {name})
    since = ", and with them all that was made since" if name == "curve.json" else ""
    said = f"intake: 1 of its kept files are damaged and are made again{since}: {name}\n"
    assert capsys.readouterr().err == said


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
