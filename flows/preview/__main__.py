"""What a run would cost, before it starts: `python -m flows.preview [--tflops X]`.

Evaluations follow from params.yaml. Seconds follow from a rate that is measured now, in a few seconds, with the
networks and batches of params.yaml on this machine; or from X, the 10^12 operations a second that another device
sustains. Left out is what neither covers: fitting and applying what scores, likelihoods, noise that is made anew
while a round trains, starting stages, pictures.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from flows.params.files import ParamsError
from flows.params.reading import read
from flows.params.schema import Params
from flows.pipeline.plan import ALWAYS_RUNS, changes, plan
from flows.preview.costs import Cost, costs
from flows.preview.rates import Rates, stated


def would_run(root: Path) -> set[str] | None:
    """The stages that `dvc repro` would run; None where DVC cannot say.

    A stage that runs every time counts only if something else of it has changed: only when it has run is it known
    whether what it makes is new.
    """
    found = changes(root)
    if found is None:
        return None
    runs: set[str] = set()
    for name, stage in plan(root, None).items():
        if found.get(name, ALWAYS_RUNS) != ALWAYS_RUNS or runs & set(stage.parents):
            runs.add(name)
    return runs


def table(params: Params, seconds: Callable[[Cost], float], runs: set[str] | None) -> str:
    """A line for each stage, and their sums."""
    rows = [(cost, seconds(cost)) for cost in costs(params)]
    wide = 2 + max(len(cost.address) for cost, _ in rows)
    lines = [f"{'stage':<{wide}}{'trained on':>14}{'evaluations':>14}{'about':>9}{'pairs on disk':>15}  would run"]
    for cost, took in rows:
        runs_now = "?" if runs is None else "yes" if cost.address in runs else "no"
        lines.append(f"{cost.address:<{wide}}{_counts(cost)}{_time(took):>9}{_bytes(cost.disk):>15}  {runs_now}")
    known = [(cost, took) for cost, took in rows if not math.isnan(took)]
    disk = _bytes(sum(cost.disk for cost, _ in rows)) or "0 MB"
    lines.append(f"all about {_time(sum(took for _, took in known))} and {disk} of pairs")
    if runs is not None:
        lines[-1] += f"; what would run, about {_time(sum(took for cost, took in known if cost.address in runs))}"
    return "\n".join(lines)


def _counts(cost: Cost) -> str:
    return "".join(f"{f'{count:,}' if count else '':>14}" for count in (cost.trained, cost.sampled))


def _bytes(count: int) -> str:
    return "" if not count else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    """Seconds as one says them.

    >>> _time(42), _time(600), _time(9000), _time(400_000), _time(float("nan"))
    ('42 s', '10 min', '2.5 h', '4.6 d', 'unknown')
    """
    if math.isnan(seconds):
        return "unknown"
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if unit < 3600 else f"{value:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m flows.preview", description=__doc__.partition("\n")[0])
    parser.add_argument("--tflops", type=float, help="10^12 operations a second that another device sustains")
    tflops = parser.parse_args().tflops
    if tflops is not None and not 0 < tflops < math.inf:
        parser.error(f"--tflops: expected a number above 0, got {tflops}")
    try:
        params = read()
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    seconds = Rates(params).of if tflops is None else lambda cost: stated(params, cost, tflops)
    print(table(params, seconds, would_run(Path.cwd())))
    how = "as measured here just now" if tflops is None else f"at {tflops:g} TFLOP/s, too many for small networks"
    print(f"Seconds are {how}; without fitting what scores, starting stages and pictures.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
