"""All endings from the same base, r1 and couplings, on several data sets and seeds: docs/endings.csv.

    python scripts/endings_trials.py FOLDER [--data digits,checkerboard] [--seeds 0,1]

A second call goes on where the first stopped. It knows finished stages by name alone: after an edit, take another
folder. Models and couplings stay in FOLDER. Held-out images are those of `data.held_out`; points are compared with
points held out anyway. Seconds are those of the stage that trained the model, on this machine.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flows import layout  # noqa: E402
from flows.launch.stages import stage_at, started  # noqa: E402
from flows.params.preset import overlaid  # noqa: E402
from flows.params.reading import validate  # noqa: E402
from flows.workshop.entry import addresses  # noqa: E402
from fmcore.flow.speed import keep_freed_memory  # noqa: E402
from fmcore.score.scoring import UNSEEN  # noqa: E402

DATA: dict[str, dict[str, Any]] = {
    "digits": {"data.held_out": 0.2},
    "checkerboard": {},
    "mnist": {"data.held_out": 0.1},
}
BUDGETS = (1, 2, 4, 8)
KEPT = ("precision", "recall", "memorisation")


def settings(data: str, seed: int) -> dict[str, Any]:
    """The preset of some data with one round, and the students of preset `endings`."""
    raw: dict[str, Any] = json.loads(json.dumps(overlaid(data)))
    students = json.loads(json.dumps(overlaid("endings")))["distill"]["students"]
    init = next(iter(raw["distill"]["students"].values()))["init"]
    raw["reflow"]["rounds"] = {"r1": {"teacher": "base", "couple": {}, "train": {}}}
    raw["distill"]["students"] = {name: {**student, "init": init} for name, student in students.items()}
    for student in raw["distill"]["students"].values():
        if match := student["differs"].get("ending", {}).get("match"):  # as that data's own student is matched
            match |= {key: raw["distill"]["ending"][key] for key in match}
    raw["seed"] = seed
    raw["evaluate"]["solvers"] = {"euler": list(BUDGETS), "ab2": [16]}
    raw["evaluate"]["metrics"] = [] if raw["features"]["extractor"] == "none" else ["precision_recall"]
    for path, value in DATA[data].items():
        section, key = path.split(".")
        raw[section][key] = value
    return raw


def run(address: str, raw: dict[str, Any]) -> None:
    """Runs a stage in this folder, unless it did already; keeps its seconds."""
    done = Path("done") / address
    if done.exists():
        return
    began, cpu = time.monotonic(), time.process_time()
    for _ in started(validate(raw, address), stage_at(address)):
        pass
    about = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps(about))
    print(Path.cwd().name, address, f"{about['seconds']:.0f} s", flush=True)


def rows(data: str, seed: int, raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each model and way to sample it."""
    students = raw["distill"]["students"]
    coupled = pd.read_csv(layout.scores(layout.coupled("r1")) / "scores.csv")
    for model in validate(raw, data).models:
        table = pd.read_csv(layout.scores(model) / "scores.csv")
        headline = next(m for m in table.metric if m.startswith(("fd_", "sliced_")) and not m.endswith(UNSEEN))
        learnt = coupled[coupled.metric == headline].iloc[0]
        stage = next(
            one for one in (f"distill@{model}", f"reflow@{model}", model) if (Path("done") / one).exists()
        )
        cost = json.loads((Path("done") / stage).read_text())
        for (solver, nfe), found in table.groupby(["solver", "nfe"], sort=False):
            value = {row.metric: (row.value, row.std) for row in found.itertuples()}
            row = {"data": data, "seed": seed, "model": model, "solver": solver, "nfe": nfe}
            row |= {"distance": value[headline][0], "std": value[headline][1]}
            row["held_out"] = value.get(f"{headline}{UNSEEN}", (None,))[0]
            row |= {name: value.get(name, (None,))[0] for name in KEPT}
            row |= {"pairs": learnt.value, "pairs_std": learnt["std"]} if model in students else {}
            yield row | {key: round(of, 1) for key, of in cost.items()}


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="digits,checkerboard,mnist")
    parser.add_argument("--seeds", default="0,1")
    args = parser.parse_args()
    os.chdir(ROOT)  # for the presets
    keep_freed_memory()
    trials = [(data, seed) for data in args.data.split(",") for seed in map(int, args.seeds.split(","))]
    found: list[dict[str, Any]] = []
    whole = {(data, seed): settings(data, seed) for data, seed in trials}
    for (data, seed), raw in whole.items():
        at = args.folder.resolve() / f"{data}-{seed}"
        at.mkdir(parents=True, exist_ok=True)
        if "root" in raw["data"]:
            raw["data"]["root"] = str(ROOT / raw["data"]["root"])
        os.chdir(at)
        for address in addresses(raw):
            if address != "report":
                run(address, raw)
        found += rows(data, seed, raw)
    out = ROOT / "docs/endings.csv"
    pd.DataFrame(found).to_csv(out, index=False, float_format="%.5g", lineterminator="\n")
    print(out)


if __name__ == "__main__":
    main()
