"""Curves of cost: what a pair, a training step and a sample cost as the work grows, and where the time goes.

    python benchmarks/costs.py [--quick] [--threads 2] [--largest 100000] [--only pairs|work] [--out FILE]

Pairs are written to a temporary folder, each size in a process of its own, so that peaks of memory compare; the
curve ends at `--largest` pairs, and 1000000 of them take 9.2 GB of disk. Seconds depend on the machine; whether
the cost of one image stays flat does not. Linux only: peaks are read from /proc.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine
from benchmarks.curves.draws import assignment_costs, time_costs
from benchmarks.curves.pairs import CIFAR, pair_curve, pair_shares
from benchmarks.curves.shares import PARTS, step_shares, watching_shares
from benchmarks.curves.steps import round_costs, sampling_curve, step_curve
from benchmarks.curves.timing import table
from fmcore.flow.speed import keep_freed_memory
from fmcore.models.networks import MLP, UNet

SMALL_MLP, LARGE_UNET = MLP(width=512, depth=3), UNet(channels=(32, 64, 128), layers=1)


class Scale(NamedTuple):
    """How much is run."""

    largest: int
    repeats: int
    few: int  # repeats of what takes seconds
    mlp_batch: int
    unet_batch: int
    nfe: int
    watched: float  # seconds of training


def main() -> int:
    """Runs all and prints the tables."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that all runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--largest", type=int, default=100_000, help="pairs; 1000000 for the whole curve, 9.2 GB")
    parser.add_argument("--only", choices=("pairs", "work"), help="couplings, or training and sampling")
    parser.add_argument("--out", type=Path, help="where to write the tables")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scale = (
        Scale(min(args.largest, 10_000), 3, 1, 200, 16, 16, 2.0)
        if args.quick
        else Scale(args.largest, 9, 5, 1000, 64, 64, 60.0)
    )
    mlp, unet = "MLP 512x3, 1x8x8", "U-Net 32, 64, 128, 3x32x32"
    command = f"python benchmarks/costs.py{' --quick' if args.quick else ''} --threads {args.threads}"
    if args.largest != parser.get_default("largest"):
        command += f" --largest {args.largest}"
    if args.only:
        command += f" --only {args.only}"
    lines = [f"`{command}` on {machine.kind()}, torch {torch.__version__}, threads: {args.threads}"]
    if args.only != "work":
        lines += pair_curve(scale.largest, args.threads)  # first: later ones would find the memory warm
    keep_freed_memory()
    if args.only != "work":
        lines += table(
            "Making a pair with a network, µs (share): Euler, float32 pairs, full shards",
            "network | NFE | in all | network | noise | checks, transport cost | writing",
            [
                pair_shares(mlp, SMALL_MLP, (1, 8, 8), scale.mlp_batch, 32, scale.few),
                pair_shares(unet, LARGE_UNET, CIFAR, scale.unet_batch, 4, scale.few),
            ],
        )
    if args.only != "pairs":
        lines += work_tables(args.quick, scale, mlp, unet)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


def work_tables(quick: bool, scale: Scale, mlp: str, unet: str) -> list[str]:
    """What training and sampling cost."""
    step_batch = 32 if quick else 256
    return [
        *table(
            "A training step of a U-Net, one thing changed at a time (operations: three forward passes)",
            "changed | image | batch | ms an image | images/s | M operations an image | G operations/s",
            step_curve(quick, scale.few),
        ),
        *table(
            "Sampling with Euler, ms, and the line through it: ms an evaluation, ms whatever the NFE",
            "network | batch | NFE 1 | 2 | 4 | 8 | 16 | 32 | 64 | an evaluation | fixed | farthest from the line",
            [
                sampling_curve(mlp, SMALL_MLP, (1, 8, 8), scale.mlp_batch, scale.nfe, scale.repeats),
                sampling_curve(
                    "U-Net 32, 64, 1x8x8", UNet((32, 64), 1), (1, 8, 8), scale.unet_batch, scale.nfe, scale.repeats
                ),
            ],
        ),
        *table(
            "Forward passes of `params.yaml`, in millions: images x 3 of training, pairs x NFE of couplings",
            "model | training | pairs | in all | share",
            round_costs(),
        ),
        *table(
            "Where a training step goes. Outside: all but the network. Step less network: the fastest step minus "
            "the fastest forward and backward pass of the network alone on one batch, in turns.",
            f"network | batch | step, ms | {' | '.join(PARTS)} | outside, ms | step less network, ms",
            [
                step_shares(mlp, SMALL_MLP, (1, 8, 8), 256, 10 * scale.repeats),
                step_shares(unet, LARGE_UNET, CIFAR, step_batch, scale.repeats),
            ],
        ),
        *table(
            "What watching a training costs, as shares of it: the bar, the journal for MLflow (a record every 50 "
            "steps), checkpoints; and CPU-seconds of the process that sends the journal, importing MLflow "
            "included, which a pipeline pays once",
            "network | batch | training, s | bar | journal | checkpoints | sending, CPU-s",
            [
                watching_shares(mlp, SMALL_MLP, (1, 8, 8), 256, scale.watched),
                watching_shares(unet, LARGE_UNET, CIFAR, 16, scale.watched),
            ],
        ),
        *table(
            "Drawing a batch of 1x8x8 images with noise, ms on one thread; solving the assignment alone, in scipy "
            "and in lapx",
            "batch | independent | minibatch OT | scipy | lapx | ratio",
            [assignment_costs(count, scale.repeats) for count in (64, 128, 256, 512, 1024)],
        ),
        *table(
            "Drawing u-shaped times: scipy's rv_continuous with only a density (rfpp's way), and in closed form",
            "times | rv_continuous, ms | UShaped, ms | ratio",
            [time_costs(count, scale.repeats) for count in (128, 512)],
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
