"""One process with all threads against N processes that share them: training, and couplings.

    python benchmarks/processes.py [--processes 2] [--rounds 5] [--seconds 8] [--out FILE]

Each measurement is made in processes of its own, forked from this one, which has started no thread. Both ways take
turns, so that what else the machine does meets both. The efficiency is the median over rounds of the rate of N
processes over that of one.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine
from fmcore.flow.couplings import Independent
from fmcore.flow.fields import network_field
from fmcore.flow.ranks import barrier
from fmcore.flow.times import uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import MLP, Network, UNet, initialised
from fmcore.ode.reflow import generate_pairs
from fmcore.ode.solvers import SOLVERS

NETWORKS: dict[str, tuple[Network, tuple[int, ...], int]] = {
    "MLP 512x3, 1x8x8, batch 256": (MLP(width=512, depth=3), (1, 8, 8), 256),
    "U-Net 32, 64, patch 2, 1x28x28, batch 64": (UNet(channels=(32, 64), layers=1, patch=2), (1, 28, 28), 64),
}
NFE = 4


def training(network: Network, shape: tuple[int, ...], batch: int, seconds: float) -> float:
    """Images a second of all processes together."""
    x1 = torch.randn(1000, *shape, generator=torch.Generator().manual_seed(0))
    made = initialised(network, shape, None, 0)
    objective = flow_objective(Independent(x1), batch_size=batch, precision="fp32")
    config = TrainConfig(images=batch * 10**6, batch_size=batch, lr=1e-4)
    steps = train(new_state(made, config), objective, config, seed=0, every=1)
    return batch * _rate(lambda: next(steps), seconds)


def couplings(network: Network, shape: tuple[int, ...], batch: int, seconds: float) -> float:
    """Pairs a second of this process."""
    field = network_field(initialised(network, shape, None, 0).eval(), "fp32")
    made = generate_pairs(
        field, 10**9, shape=shape, seed=0, grid=uniform_grid(NFE), solver=SOLVERS["euler"], batch=batch
    )
    return batch * _rate(lambda: next(made), seconds)


def _rate(step: Callable[[], object], seconds: float) -> float:
    """Steps a second; a number of steps that is the same in all processes, since they wait for each other."""
    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(3):
        step()
    count = torch.tensor(max(3, round(3 * seconds / (time.perf_counter() - began))))
    if distributed.is_initialized():
        distributed.broadcast(count, 0)
    barrier()
    began = time.perf_counter()
    for _ in range(int(count)):
        step()
    barrier()
    return int(count) / (time.perf_counter() - began)


def measured(processes: int, threads: int, work: Callable[[], float]) -> list[float]:
    """What `work` finds in each of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(processes):
            if child := os.fork():
                children.append(child)
                continue
            torch.set_num_threads(threads)
            if processes > 1:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
                distributed.init_process_group(
                    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes
                )
            (Path(folder) / f"{rank}.json").write_text(json.dumps(work()))
            os._exit(0)
        if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
            raise RuntimeError("a process failed")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--out", type=Path, help="where to write the table")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    each = max(1, threads // args.processes)
    lines = [
        f"| work | one process, {threads} threads, a second | {args.processes} processes of {each}, a second | "
        "efficiency (least to most) |",
        "|---|---|---|---|",
    ]
    for name, (network, shape, batch) in NETWORKS.items():
        for what, work in (("training", training), ("couplings", couplings)):
            ones, manys = [], []
            for _ in range(args.rounds):
                ones += measured(1, threads, lambda: work(network, shape, batch, args.seconds))  # noqa: B023
                found = measured(args.processes, each, lambda: work(network, shape, batch, args.seconds))  # noqa: B023
                manys.append(found[0] if what == "training" else sum(found))
            shares = sorted(many / one for one, many in zip(ones, manys, strict=True))
            told = f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"
            rates = f"{statistics.median(ones):,.0f} | {statistics.median(manys):,.0f}"
            lines.append(f"| {what}, {name} | {rates} | {told} |")
            print(lines[-1], flush=True)
    told = f"{machine.kind()}, torch {torch.__version__}, {threads} cores, {args.rounds} rounds in turns"
    text = f"{told}\n\n" + "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
