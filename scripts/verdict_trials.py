"""What `fmcore.verdict` was derived from and tried on: three reflow rounds under fourteen settings.

    python scripts/verdict_trials.py FOLDER     # 75 minutes on one core; writes docs/verdict.csv

A second call goes on where the first stopped. It knows finished stages by name alone: after an edit, take another
folder.

After each of the first two rounds the verdict says whether a further one pays at one step; the next round says
what it won. Models and couplings stay in FOLDER.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flows import layout  # noqa: E402
from flows.launch.stages import stage_at, started  # noqa: E402
from flows.params.preset import overlaid  # noqa: E402
from flows.params.reading import validate  # noqa: E402
from fmcore.score.estimates import Estimate, difference  # noqa: E402
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
    for _ in started(validate(raw, stage), stage_at(stage)):
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
    """What the verdict says after each round, and what the next one won, as a share of the one-step distance."""
    by_model = {name: scores(name) for name in FLOWS}
    for rounds in (1, 2):
        known = {name: by_model[name] for name in FLOWS[: rounds + 1]}
        found = verdict(known, dict(zip(FLOWS[1 : rounds + 1], FLOWS, strict=False)))
        of, after = found.rounds[-1], by_model[FLOWS[rounds + 1]]
        now = by_model[of.name]
        won, lost = difference(now[found.few], after[found.few]), difference(after[found.many], now[found.many])
        one_step = now[found.few].value
        real, made = reconstructions(of.name)
        yield {
            "trial": trial,
            "after": of.name,
            "one_step": one_step,
            "bend": of.bend.value,
            "bend_std": of.bend.std,
            "drift": of.drift.value,
            "drift_std": of.drift.std,
            "bend_over_drift": of.bend.value / of.drift.value,
            "real_over_made": real / made,
            "pays": found.pays,
            "won_share": won.value / one_step,
            "won_share_std": won.std / one_step,
            "bend_left": (after[found.few].value - after[found.many].value) / of.bend.value,
            "drift_again": lost.value / of.drift.value,
        }


def reconstructions(name: str) -> list[float]:
    """Reconstruction errors of real and of generated samples."""
    table = pd.read_csv(layout.scores(name) / "scores.csv").set_index("metric").value
    return [float(table[f"reconstruction_{of}"]) for of in ("real", "generated")]


def ratios(found: pd.DataFrame) -> pd.DataFrame:
    """What each ratio would have decided: rounds made, right and wrong; shares won and missed, summed."""
    clear = found.bend > SURE * found.bend_std
    lines = []
    for ratio in (0.0, 1.0, 2.0, 2.5, 3.0, 3.2, 3.5, 4.0, 4.5, 5.0, 6.0):
        go = clear & (found.bend > ratio * found.drift)
        sure = SURE * found.won_share_std
        lines.append(
            {
                "ratio": ratio,
                "rounds": int(go.sum()),
                "right": int((found.won_share > sure)[go].sum()),
                "wrong": int((found.won_share < -sure)[go].sum()),
                "won": found.won_share[go].sum(),
                "missed": found.won_share[~go].clip(lower=0).sum(),
            }
        )
    return pd.DataFrame(lines)


def held_out(found: pd.DataFrame) -> float:
    """The share won in all if each setting is decided by the ratio that was best on the others."""
    total = 0.0
    for trial, mine in found.groupby("trial"):
        others = ratios(found[found.trial != trial])
        best = others[others.won == others.won.max()].ratio.median()
        go = (mine.bend > SURE * mine.bend_std) & (mine.bend > best * mine.drift)
        total += mine.won_share[go].sum()
    return total


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
        for stage in ("check", "intake", "features", "base", "evaluate_base"):
            run(stage, raw)
        for name in FLOWS[1:]:
            for stage in ("couple", "reflow", "evaluate"):
                run(f"{stage}@{name}", raw)
        table += list(rows(trial))
    os.chdir(ROOT)
    found = pd.DataFrame(table)
    found.to_csv(ROOT / "docs/verdict.csv", index=False, float_format="%.4g", lineterminator="\n")
    columns = [
        "trial",
        "after",
        "one_step",
        "bend",
        "drift",
        "bend_over_drift",
        "real_over_made",
        "pays",
        "won_share",
    ]
    print(found.sort_values("bend_over_drift")[[*columns, "won_share_std"]].to_string(float_format="%.3g"))
    print(found[["bend_left", "drift_again"]].quantile([0.25, 0.5, 0.75]).to_string(float_format="%.2f"))
    print(ratios(found).to_string(index=False, float_format="%.3g"))
    print(f"settings held out one at a time: {held_out(found):.3g}")
    print(found[["real_over_made", "won_share"]].corr("spearman").iloc[0, 1], "rank correlation of these two")
    return 0


if __name__ == "__main__":
    sys.exit(main())
