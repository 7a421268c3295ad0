"""How much memory the stages intake and base take, and how long intake does, by the number of images.

    python benchmarks/memory.py [--counts 10000,100000,1000000] [--out FILE]

The images are 32x32 JPEGs in a folder, a thousand distinct ones under many names, and the same as one .npy file.
Counted is what a process holds for itself (RssAnon); what it has mapped from files the system may drop.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine

ROOT = Path(__file__).parents[1]
DISTINCT, SIDE = 1000, 32

# Runs the two stages on a folder or a file; prints the peaks above what was held before, and intake's seconds.
MEASURED = """
import os, sys, threading, time
from pathlib import Path
from flows.launch.stages import stage_at, started
from flows.params.preset import overlaid
from flows.params.reading import validate
kind, project, here = *sys.argv[1:], os.getcwd()
os.chdir(project)
raw = overlaid("images")
os.chdir(here)
raw["features"]["extractor"] = "random"
raw["network"] = {"name": "mlp", "width": 64, "depth": 1, "fourier": 0}
raw["base"]["train"]["images"] = 20_000
if kind == "npy":
    raw["data"] = {"name": "arrays", "root": "x.npy", "shape": [3, 32, 32], "values": "pixels", "held_out": 0.0}
    raw["data"] |= {"array": None, "labels": None, "group": None}
else:
    raw["data"]["root"] = "images"
params = validate(raw, "benchmark")
def held():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024
peak, over = 0.0, False
def watch():
    global peak
    while not over:
        peak = max(peak, held())
        time.sleep(0.01)
list(started(params, stage_at("check")))
list(started(params, stage_at("look")))
threading.Thread(target=watch).start()
for stage in ("intake", "base"):
    start, peak, since = held(), held(), time.perf_counter()
    list(started(params, stage_at(stage)))
    print(f"{peak - start:.0f} {time.perf_counter() - since:.1f}")
over = True
"""


def make(folder: Path, count: int) -> None:
    """The images, as files and as an array."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (DISTINCT, 4, 4, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in small]
    first = folder / "distinct"
    first.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(first / f"{i}.jpg", quality=90)
    for start in range(0, count, DISTINCT):
        part = folder / "images" / str(start)
        part.mkdir(parents=True)
        for i in range(min(DISTINCT, count - start)):
            os.link(first / f"{i}.jpg", part / f"{i}.jpg")
    rows = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (count, 3, SIDE, SIDE))
    block = np.stack(images).transpose(0, 3, 1, 2)
    for start in range(0, count, DISTINCT):
        rows[start : start + DISTINCT] = block[: min(DISTINCT, count - start)]
    rows.flush()


def measured(kind: str, count: int) -> list[str]:
    """Intake's peak and seconds, and base's peak."""
    with tempfile.TemporaryDirectory() as made:
        make(Path(made), count)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, kind, str(ROOT)],
            cwd=made,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        (intake, seconds), (base, _) = (line.split() for line in done.stdout.splitlines()[-2:])
        return [f"{intake} MB", f"{seconds} s", f"{base} MB"]


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="10000,100000,1000000")
    parser.add_argument("--kinds", default="folder,npy")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| images | pixels | read from | intake holds | takes | base holds |", "| --- " * 6 + "|"]
    for count in map(int, args.counts.split(",")):
        for kind in args.kinds.split(","):
            pixels = f"{3 * SIDE * SIDE * count / 1e6:,.0f} MB"
            lines.append(f"| {count:,} | {pixels} | {kind} | {' | '.join(measured(kind, count))} |")
            print(lines[-1], flush=True)
    text = "\n".join([*lines, "", machine.kind()])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
