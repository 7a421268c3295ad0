"""Scores after equal CPU-seconds: the base flow of the digits, trained as fmcore does and plainly in float32.

    python benchmarks/quality.py [--quick] [--seconds 30] [--seeds 1] [--out FILE]

Both train the network of params.yaml on the same batches with the same learning rate and average, on one thread:
`auto` with what fmcore's pipeline chooses, `plain` with the same loop in float32, eager, and torch's own allocator
settings. Every few CPU-seconds of training the averaged weights are scored: 5,000 samples of 32 Euler steps
against all digits, by the classifier of params.yaml. Only training counts towards the seconds.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flows.params.reading import read  # noqa: E402
from flows.params.schema import Params  # noqa: E402
from fmcore.flow.couplings import Independent  # noqa: E402
from fmcore.flow.fields import network_field  # noqa: E402
from fmcore.flow.paths import LINEAR  # noqa: E402
from fmcore.flow.pixels import quantise  # noqa: E402
from fmcore.flow.speed import keep_freed_memory, prepare  # noqa: E402
from fmcore.flow.times import uniform_grid  # noqa: E402
from fmcore.flow.training import TrainConfig, flow_objective, new_state, take_average, train  # noqa: E402
from fmcore.models.networks import initialised  # noqa: E402
from fmcore.ode.reflow import draw  # noqa: E402
from fmcore.ode.solvers import SOLVERS, integrate  # noqa: E402
from fmcore.score.extractors import load_extractor, save_extractor  # noqa: E402
from fmcore.score.feature_net import fitting  # noqa: E402
from fmcore.score.frechet import frechet_distance, stats  # noqa: E402

POINTS, SAMPLES, NFE = 6, 5000, 32


def defaults() -> Params:
    """The default recipe."""
    return read(ROOT / "presets" / "digits.yaml")


def fit_extractor(folder: Path) -> None:
    """Trains the classifier that all are scored by."""
    params = defaults()
    data, section = params.data.load(), params.features
    pixels = quantise(data.reference) if data.reference.is_floating_point() else data.reference
    fitted = fitting(
        "classifier", pixels, data.label, data.num_classes, batch_size=section.train.batch_size, seed=0
    )
    state = new_state(fitted.network, section.train)
    for _ in train(state, fitted.objective, section.train, seed=0):
        pass
    take_average(state)
    save_extractor(folder, "classifier", fitted, pixels)


def run(how: str, seed: int, seconds: float, folder: Path) -> None:
    """Trains for that long and prints, at each point, the CPU-seconds, the images seen and the score."""
    torch.set_num_threads(1)
    params = defaults()
    if how == "auto":
        keep_freed_memory()
    precision = "auto" if how == "auto" else "fp32"
    extractor, data = load_extractor(folder), params.data.load()
    pixels = quantise(data.reference) if data.reference.is_floating_point() else data.reference
    real = stats(extractor(pixels))
    # The learning rate is constant, so each point is for both the end of a run of its length.
    batch = params.base.train.batch_size
    config = TrainConfig(
        images=10**9,
        batch_size=batch,
        lr=params.base.train.lr,
        warmup_images=10_000,
        ema_halflife_images=(50_000.0,),
    )
    network = initialised(params.network, data.shape, None, seed)
    if how == "auto":
        prepare(network, precision, "off", work=0.0, training=True)
    state = new_state(network, config)
    objective = flow_objective(
        Independent(data.x1),
        LINEAR,
        params.base.times,
        params.base.distance,
        batch_size=batch,
        precision=precision,
    )
    x0, _ = draw(0, SAMPLES, shape=data.shape, seed=seed, purpose="evaluate")
    spent, point, start = 0.0, 1, time.process_time()
    for record in train(state, objective, config, seed=seed, every=10):
        if spent + time.process_time() - start < seconds * point / POINTS:
            continue
        spent += time.process_time() - start
        twin = copy.deepcopy(state)
        field = network_field(take_average(twin).requires_grad_(False), "fp32")
        x1 = torch.cat([integrate(field, x, uniform_grid(NFE), SOLVERS["euler"]) for x in torch.split(x0, 1000)])
        score = frechet_distance(stats(extractor(quantise(x1))), real)
        print(f"{spent:.2f} {record.images} {score:.6f}", flush=True)
        if point == POINTS:
            return
        point, start = point + 1, time.process_time()


def main() -> int:
    """Runs both at once, one thread each, seed after seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that all runs")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        how, seed, seconds, folder = args.worker
        run(how, int(seed), float(seconds), Path(folder))
        return 0
    seconds, seeds = (3.0, 1) if args.quick else (args.seconds, args.seeds)
    found: dict[str, list[list[list[float]]]] = {"auto": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        fit_extractor(Path(folder))
        for seed in range(seeds):
            processes = {
                how: subprocess.Popen(
                    [sys.executable, __file__, "--worker", how, str(seed), str(seconds), folder],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for how in found
            }
            for how, process in processes.items():
                out, _ = process.communicate()
                if process.returncode:
                    for other in processes.values():
                        other.kill()
                    return 1
                found[how].append([[float(cell) for cell in line.split()] for line in out.splitlines()])
    lines = [
        f"`python benchmarks/quality.py --seconds {seconds:g} --seeds {seeds}`, torch {torch.__version__}, one "
        "thread:",
        "",
        "| CPU-seconds | images, plain | images, fmcore | score, plain | score, fmcore | ratio | seeds won |",
        f"|{' --- |' * 7}",
    ]
    for point in range(POINTS):
        plain, auto = ([runs[seed][point] for seed in range(seeds)] for runs in (found["plain"], found["auto"]))
        won = sum(a[2] <= b[2] for a, b in zip(auto, plain, strict=True))
        mean = [[statistics.mean(row[i] for row in rows) for i in range(3)] for rows in (plain, auto)]
        lines.append(
            f"| {mean[1][0]:.0f} | {mean[0][1]:,.0f} | {mean[1][1]:,.0f} | {mean[0][2]:.3f} | {mean[1][2]:.3f} "
            f"| {mean[1][2] / mean[0][2]:.2f} | {won} of {seeds} |"
        )
    text = "\n".join([*lines, ""])
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
