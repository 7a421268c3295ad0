"""The stage intake: what a kill or a change of the data while it reads does, and how much memory it takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import layout
from fmcore.disk.dataset import DataError, load_dataset
from fmcore.intake import pictured
from repository import ROOT
from stage_runs import data_of, events_of, notes, tiny

COUNT = 30


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictured, "TOLD", 1)
    monkeypatch.setattr(pictured, "SAVED_SECONDS", -1.0)
    random, place = np.random.default_rng(0), tmp_path / "images"
    place.mkdir()
    for i in range(COUNT):
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{i}.png")
    found = tiny(data=data_of("images"), features__extractor="random")
    for stage in ("check", "look"):
        list(events_of(found, stage))
    return found


def bars(events):
    return [(event.done, event.total) for event in events if type(event).__name__ == "Progress"]


def stopped_at(params, count):
    events = events_of(params, "intake")
    for event in events:
        if type(event).__name__ == "Progress" and event.done == count:
            break
    events.close()


def test_a_killed_intake_goes_on(params):
    list(events_of(params, "intake"))
    whole = load_dataset(layout.DATASET)
    manifest = (layout.DATASET / "manifest.json").read_bytes()
    stopped_at(params, 20)
    events = list(events_of(params, "intake"))
    assert bars(events)[0] == (20, COUNT)
    assert bars(events)[-1] == (COUNT, COUNT)
    assert load_dataset(layout.DATASET).x1.tolist() == whole.x1.tolist()
    assert (layout.DATASET / "manifest.json").read_bytes() == manifest
    assert not list(Path("work").rglob("pixels")), "the room it took is given back"


def test_files_that_change_during_the_read_stop_it_by_name(params):
    stopped_at(params, 20)
    changed = Path("images/3.png")  # read already
    Image.new("L", (8, 8), 7).save(changed)
    with pytest.raises(DataError, match=r"files changed while they were read, .*\('images/3\.png'\); run"):
        list(events_of(params, "intake"))
    assert not layout.DATASET.exists()
    list(events_of(params, "look"))
    events = list(events_of(params, "intake"))
    assert bars(events)[0] == (0, COUNT)
    assert [line for line in notes(events) if line.startswith("data images: 30 samples")]
    assert 7 in load_dataset(layout.DATASET).x1.flatten(1).float().mean(1).tolist()
    Path("images/5.png").unlink()
    with pytest.raises(DataError, match=r"files changed while .*some are gone"):
        list(events_of(params, "intake"))


MEASURE = """
import sys, threading, time
from pathlib import Path
from flows.params.reading import load_yaml, validate
import json
from stage_runs import events_of, run, tiny
params = tiny(**json.loads(sys.argv[1]))
def held():  # what the process holds itself, in bytes; what is mapped from files the system may drop
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
peak, over = 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, held())
        time.sleep(0.01)
list(run(params, "check"))  # imports, and the first time through
start = held()
threading.Thread(target=watch).start()
for stage in ("intake", "base"):
    list(events_of(params, stage))
over = True
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process holds")
def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = 400_000_000
    np.lib.format.open_memmap("x.npy", "w+", np.uint8, (size // 64, 1, 8, 8)).flush()
    about = {"name": "arrays", "root": "x.npy", "shape": [1, 8, 8], "values": "pixels", "held_out": 0.0}
    about |= {"array": None, "labels": None, "group": None}
    changes = {"data": about, "features__extractor": "random"}

    command = [sys.executable, "-c", MEASURE, json.dumps(changes)]
    done = subprocess.run(
        command, env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "PATH": "/usr/bin:/bin"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < size / 3
