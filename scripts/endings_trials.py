"""All endings from the same base, r1 and couplings, on data sets and seeds: docs/endings.csv, and a picture.

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
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flows import layout  # noqa: E402
from flows.launch.stages import stage_at, started  # noqa: E402
from flows.params.preset import overlaid  # noqa: E402
from flows.params.reading import validate  # noqa: E402
from flows.report.figures import colour_of  # noqa: E402
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


def draw(table: pd.DataFrame) -> Figure:
    """Distance against NFE by Euler steps: means over seeds, bars from the least to the most; held out dashed."""
    models = list(dict.fromkeys(table.model))
    datas = list(dict.fromkeys(table.data))
    figure = Figure(figsize=(6.2 * len(datas), 4.6), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(datas), squeeze=False)[0], datas, strict=True):
        of_data = table[table.data == data]
        pairs = of_data.pairs.mean()
        axes.axhline(pairs, color="#8f9bab", linestyle=":", linewidth=1)
        axes.annotate("pairs", (0.86, pairs), color="#5b6675", va="bottom", fontsize=8)
        for i, model in enumerate(models):
            rows = of_data[(of_data.model == model) & (of_data.solver == "euler")]
            colour = colour_of(models, model)
            for column, style in (("distance", "-"), ("held_out", "--")):
                by_nfe = rows.dropna(subset=[column]).groupby("nfe")[column].agg(["mean", "min", "max"])
                if by_nfe.empty:
                    continue
                x = by_nfe.index * 1.02 ** (i - len(models) / 2)  # side by side, so that bars can be told apart
                ends = [by_nfe["mean"] - by_nfe["min"], by_nfe["max"] - by_nfe["mean"]]
                label = model if column == "distance" else None
                axes.errorbar(x, by_nfe["mean"], ends, fmt=f"o{style}", color=colour, label=label, ms=3.5, lw=1.3)
        axes.set(xscale="log", yscale="log", title=data, xlabel="network evaluations a sample (NFE)")
        axes.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS], minor=False)
        axes.minorticks_off()
        axes.set_ylabel(
            "sliced Wasserstein distance" if of_data.held_out.isna().all() else "fd_cnn64 (dashed: held out)"
        )
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


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
    draw(pd.DataFrame(found)).savefig(ROOT / "docs/pictures/endings.png", dpi=110)
    print(out)


if __name__ == "__main__":
    main()
