"""What a run would cost, before it starts: `python -m flows.launch.preview [--tflops X]`.

Evaluations follow from params.yaml. Seconds follow from a rate that is measured now, in a few seconds, with the
networks and batches of params.yaml on this machine; or from X, the 10^12 operations a second that another device
sustains. What neither covers is left out: fitting and applying what scores, starting stages, pictures.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from flows.params.files import ParamsError
from flows.params.reading import read
from flows.params.schema import Params
from flows.stages.evaluate import ADAPTIVE_NFE
from flows.stages.shards import shard_size
from flows.workshop.entry import addresses, entry_of, reads
from flows.workshop.setup import device_of
from fmcore.endings.regression import Regression
from fmcore.flow.couplings import Independent
from fmcore.flow.fields import network_field
from fmcore.flow.speed import flops
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import Network, initialised

MEASURED = 1.0  # seconds that each rate is measured for
BATCH = 1000  # where the pairs' batch is auto
CLASSES = 10  # of a conditional network whose data have not been read
TRAINED = 3  # a training step costs about three evaluations, since it has a backward pass


class Cost(NamedTuple):
    """What a stage takes: evaluations without and with a backward pass, in batches, and the bytes of its pairs."""

    address: str
    network: Network | None
    sampled: int
    trained: int
    batch: int
    disk: float


def costs(params: Params) -> Iterator[Cost]:
    """The stages that evaluate networks, in the order in which they run."""
    for address in addresses(params.model_dump(mode="json")):
        kind, _, name = address.partition("@")
        if kind == "base" and params.base.teacher is None:
            yield _trained(address, params.network, params.base.train, 1.0)
        elif kind == "reflow":
            yield _trained(address, network_of(params, name), params.train_of(name), 1.0)
        elif kind == "distill":
            distill = params.distill_of(name)
            yield _trained(address, network_of(params, name), distill.train, distill.ending.passes)
        elif kind == "couple":
            couple = params.couple_of(name)
            pairs, each = couple.pairs + couple.inverted, couple.nfe * (2 if couple.guidance else 1)
            batch = BATCH if couple.batch == "auto" else couple.batch
            disk = shard_size(params.data.shape, couple.dtype, 1).pair_bytes * pairs
            yield Cost(
                address, network_of(params, params.reflow.rounds[name].teacher), pairs * each, 0, batch, disk
            )
        elif kind in ("evaluate_base", "evaluate", "evaluate_student"):
            yield _scored(address, name or "base", params)


def network_of(params: Params, model: str) -> Network | None:
    """The network of a model; None if it is that of a diffusion model that stands for the base."""
    own = None
    if model in params.reflow.rounds:
        own = params.reflow.network
    elif model in params.distill.students:
        own = params.distill_of(model).network
        init = params.distill.students[model].init
        own = own or (None if init == "base" else params.reflow.network)
    return own or (params.network if params.base.teacher is None else None)


def _trained(address: str, network: Network | None, train: TrainConfig, passes: float) -> Cost:
    return Cost(address, network, 0, round(train.images * passes), train.batch_size // train.accumulate, 0.0)


def _scored(address: str, model: str, params: Params) -> Cost:
    section, steps = params.evaluate, [n for nfe in params.evaluate.solvers.values() for n in nfe]
    if model in params.distill.students and isinstance(ending := params.distill_of(model).ending, Regression):
        k = ending.k
        steps = [n for n in {k, *section.solvers["euler"]} if k % n == 0]
    else:
        steps = steps * len(section.grids) + ([ADAPTIVE_NFE] if section.dopri5 else [])
    evaluations = section.samples * section.repeats * sum(steps)
    return Cost(address, network_of(params, model), evaluations, 0, section.batch, 0.0)


class Rates:
    """Seconds that evaluations take here, each kind of work measured once."""

    def __init__(self, params: Params) -> None:
        self.params, self.device = params, device_of(params)
        self.seconds = cache(self._seconds)

    def of(self, cost: Cost) -> float:
        """Seconds of a stage."""
        if cost.network is None:
            return float("nan")
        sampled = cost.sampled and cost.sampled * self.seconds(cost.network, cost.batch, False)
        return sampled + (cost.trained and cost.trained * self.seconds(cost.network, cost.batch, True))

    def _seconds(self, network: Network, batch: int, training: bool) -> float:
        """Seconds of one evaluation of one sample, in training with its backward pass and update."""
        params = self.params
        made = initialised(network, params.data.shape, CLASSES if params.conditional else None, 0).to(self.device)
        x = torch.randn(batch, *params.data.shape, device=self.device)
        label = torch.zeros(batch, dtype=torch.long, device=self.device) if params.conditional else None
        if training:
            config = TrainConfig(images=batch * 10**6, batch_size=batch, lr=1e-4)
            objective = flow_objective(Independent(x, label), batch_size=batch, precision=params.precision)
            steps = train(new_state(made, config), objective, config, seed=0, every=1)
            return _per_call(lambda: next(steps)) / batch
        field = network_field(made.eval(), params.precision)
        t = torch.zeros(batch, device=self.device)
        with torch.no_grad():
            return _per_call(lambda: field(x, t, label).sum().item()) / batch


def _per_call(call: Callable[[], object]) -> float:
    for _ in range(2):
        call()
    began, calls = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < MEASURED:
        call()
        calls += 1
    return took / calls


def stated(params: Params, cost: Cost, tflops: float) -> float:
    """Seconds of a stage on a device that sustains so many 10^12 operations a second."""
    if cost.network is None:
        return float("nan")
    with torch.device("meta"):
        network = cost.network.build(params.data.shape, CLASSES if params.conditional else None)
    one = flops(network, params.data.shape, CLASSES if params.conditional else None)
    return one * (cost.sampled + TRAINED * cost.trained) / (tflops * 1e12)


def would_run(params: Params) -> set[str] | None:
    """The stages that `dvc repro` would run; None where DVC cannot say."""
    told = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True)
    if told.returncode:
        return None
    raw = params.model_dump(mode="json")
    found, made = set(json.loads(told.stdout)), set[Path]()
    for address in addresses(raw):
        entry = entry_of(address, raw)
        if address in found or reads(entry.inputs, made):
            found.add(address)
            made |= set(entry.outs)
    return found


def table(params: Params, seconds: Callable[[Cost], float], runs: set[str] | None) -> str:
    """A line for each stage, and their sums."""
    rows = [(cost, seconds(cost)) for cost in costs(params)]
    wide = 2 + max(len(cost.address) for cost, _ in rows)
    lines = [f"{'stage':<{wide}}{'trained on':>14}{'evaluations':>14}{'about':>9}{'pairs on disk':>15}  would run"]
    for cost, took in rows:
        runs_now = "?" if runs is None else "yes" if cost.address in runs else "no"
        lines.append(f"{cost.address:<{wide}}{_counts(cost)}{_time(took):>9}{_bytes(cost.disk):>15}  {runs_now}")
    total = sum(took for _, took in rows if took == took)
    now = sum(took for cost, took in rows if took == took and runs is not None and cost.address in runs)
    disk = sum(cost.disk for cost, _ in rows)
    would = "" if runs is None else f"; what would run, about {_time(now)}"
    lines.append(f"all about {_time(total)} and {_bytes(disk) or '0 MB'} of pairs{would}")
    return "\n".join(lines)


def _counts(cost: Cost) -> str:
    return "".join(f"{f'{count:,}' if count else '':>14}" for count in (cost.trained, cost.sampled))


def _bytes(count: float) -> str:
    return "" if not count else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    """Seconds as one says them.

    >>> _time(42), _time(600), _time(9000), _time(400_000), _time(float("nan"))
    ('42 s', '10 min', '2.5 h', '4.6 d', 'unknown')
    """
    if seconds != seconds:
        return "unknown"
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if unit < 3600 else f"{value:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m flows.launch.preview", description=__doc__.partition("\n")[0])
    parser.add_argument("--tflops", type=float, help="10^12 operations a second that another device sustains")
    tflops = parser.parse_args().tflops
    if tflops is not None and not tflops > 0:
        parser.error(f"--tflops: expected more than 0, got {tflops}")
    try:
        params = read()
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    seconds = Rates(params).of if tflops is None else lambda cost: stated(params, cost, tflops)
    print(table(params, seconds, would_run(params)))
    how = (
        "as measured here just now"
        if tflops is None
        else f"at {tflops:g} TFLOP/s, too many for small networks"
    )
    print(f"Seconds are {how}; without fitting what scores, starting stages and pictures.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
