"""What `fmcore.verdict` was derived from and tried on: three reflow rounds under fourteen settings.

    python scripts/verdict_trials.py FOLDER     # hours; goes on where it was stopped; writes docs/verdict.csv

After each of the first two rounds the verdict says what a further one is expected to win at one step; the next
round says what it did win. Models and couplings stay in FOLDER.
"""

import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flows import layout  # noqa: E402
from flows.params import validate  # noqa: E402
from flows.preset import overlaid  # noqa: E402
from flows.running import STAGES  # noqa: E402
from fmcore.metrics import Estimate, difference  # noqa: E402
from fmcore.verdict import SURE, verdict  # noqa: E402

FLOWS = ("base", "r1", "r2", "r3")
TRIALS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", {}),
    "digits, seed 1": ("digits", {"seed": 1}),
    "digits, seed 2": ("digits", {"seed": 2}),
    "digits, couplings of 8 evaluations": ("digits", {"couple.nfe": 8}),
    "digits, 5,000 couplings": ("digits", {"couple.pairs": 5000}),
    "digits, a fifth of the training": (
        "digits",
        {"base.train.images": 200000, "reflow.train.images": 100000},
    ),
    "digits, network of width 128": ("digits", {"network.width": 128}),
    "digits, minibatch OT": ("digits", {"base.coupling": "minibatch_ot"}),
    "checkerboard": ("checkerboard", {}),
    "checkerboard, seed 1": ("checkerboard", {"seed": 1}),
    "checkerboard, a quarter of the training": ("checkerboard", {"reflow.train.images": 150000}),
    "moons": ("moons", {}),
    "moons, couplings of 4 evaluations": ("moons", {"couple.nfe": 4}),
    "eight Gaussians": ("eight_gaussians", {}),
}


def settings(preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A preset with three rounds, scored at one and at many Euler steps, and `changes` by dotted key."""
    raw: dict[str, Any] = json.loads(json.dumps(overlaid(preset)))
    couple = {"couple": {}, "train": {}}
    raw["reflow"]["rounds"] = {name: {"teacher": of, **couple} for of, name in pairwise(FLOWS)}
    raw["evaluate"]["solvers"] = {"euler": [1, 64 if preset == "digits" else 32]}
    for path, value in changes.items():
        *parents, last = path.split(".")
        at = raw
        for part in parents:
            at = at[part]
        at[last] = value
    return raw


def run(stage: str, raw: dict[str, Any]) -> None:
    """Runs a stage in this folder, unless it did already."""
    done = Path("done") / stage
    if done.exists():
        return
    kind, _, name = stage.partition("@" if "@" in stage else "_")
    for _ in getattr(import_module(STAGES[kind]), kind)(validate(raw, stage), name):
        pass
    done.parent.mkdir(exist_ok=True)
    done.touch()
    print(Path.cwd().name, stage, flush=True)


def scores(name: str) -> dict[int, Estimate]:
    """A model's distances by NFE, with what makes differences paired."""
    folder = layout.scores(name)
    table, groups = (pd.read_csv(folder / file) for file in ("scores.csv", "jackknife.csv"))
    headline = next(m for m in table.metric if m.startswith(("fd_", "sliced_")))
    found = {}
    for row in table[table.metric == headline].itertuples():
        left_out = groups[(groups.metric == headline) & (groups.nfe == row.nfe)].value
        found[int(row.nfe)] = Estimate(row.value, row.std, row.n_samples, tuple(left_out))
    return found


def rows(trial: str) -> Iterator[dict[str, Any]]:
    """What was expected after each round, and what the next one won."""
    by_model = {name: scores(name) for name in FLOWS}
    for rounds in (1, 2):
        known = {name: by_model[name] for name in FLOWS[: rounds + 1]}
        found = verdict(known, dict(zip(FLOWS[1 : rounds + 1], FLOWS, strict=False)))
        last, after = FLOWS[rounds], FLOWS[rounds + 1]
        won = difference(by_model[last][found.few], by_model[after][found.few])
        drift = difference(by_model[after][found.many], by_model[last][found.many])
        left = by_model[after][found.few].value - by_model[after][found.many].value
        yield {
            "trial": trial,
            "after": last,
            "one_step": by_model[last][found.few].value,
            "bend": found.rounds[-1].bend.value,
            "drift": found.rounds[-1].drift.value,
            "bend_left": left / found.rounds[-1].bend.value,
            "drift_again": drift.value / found.rounds[-1].drift.value,
            "expected": found.expected.value,
            "expected_std": found.expected.std,
            "pays": found.pays,
            "won": won.value,
            "won_std": won.std,
            "paid": won.value > SURE * won.std,
        }


def main() -> int:
    """Runs what is missing and writes the table."""
    folder = Path(sys.argv[1]).resolve()
    table = []
    for trial, (preset, changes) in TRIALS.items():
        place = folder / trial.replace(",", "").replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(ROOT)
        raw = settings(preset, changes)
        os.chdir(place)
        for stage in ("check", "features", "base", "evaluate_base"):
            run(stage, raw)
        for name in FLOWS[1:]:
            for stage in ("couple", "reflow", "evaluate"):
                run(f"{stage}@{name}", raw)
        table += list(rows(trial))
    os.chdir(ROOT)
    found = pd.DataFrame(table)
    found.to_csv(ROOT / "docs/verdict.csv", index=False, float_format="%.4g", lineterminator="\n")
    print(found.drop(columns=["bend_left", "drift_again"]).to_string(float_format="%.3g"))
    print(found[["bend_left", "drift_again"]].describe())
    print(pd.crosstab(found.pays, found.paid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
