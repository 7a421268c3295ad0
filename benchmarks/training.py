"""Training and sampling speed against the loops that torchcfm and flow_matching document, and torchdiffeq's Euler.

    python benchmarks/training.py [--quick] [--threads 2] [--out benchmarks/results/training-cpu-2.md]

Every candidate trains the same network on the same data in batches of one size; they take turns, and medians are
shown. The peers' loops are restated from their documentation: Adam, a DataLoader, an average of the weights kept
in Python (torchcfm's image example, which also clips gradients), or none (flow_matching's). Ratios compare; images
a second belong to the machine.
"""

import argparse
import copy
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fmcore.couplings import Independent, MinibatchOT  # noqa: E402
from fmcore.fields import network_field  # noqa: E402
from fmcore.losses import Squared  # noqa: E402
from fmcore.networks import MLP, UNet, initialised  # noqa: E402
from fmcore.paths import LINEAR  # noqa: E402
from fmcore.solvers import SOLVERS, integrate  # noqa: E402
from fmcore.times import Uniform, uniform_grid  # noqa: E402
from fmcore.training import TrainConfig, flow_objective, new_state, train  # noqa: E402

Step = Callable[[], object]
CASES = {
    "MLP 512x3, 8x8": (MLP(width=512, depth=3), (1, 8, 8), 256),
    "U-Net, 8x8": (UNet(channels=(32, 64), layers=1), (1, 8, 8), 128),
    "U-Net, 28x28": (UNet(channels=(32, 64, 64), layers=1), (1, 28, 28), 64),
    "U-Net, 32x32 RGB": (UNet(channels=(32, 64, 128), layers=1), (3, 32, 32), 64),
}


def data_of(shape: tuple[int, ...], count: int = 4096) -> Tensor:
    """Images to train on; speed does not depend on what they show."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ours(network: nn.Module, data: Tensor, batch: int, precision: str, *, ot: bool = False) -> Step:
    """One optimizer step of fmcore's loop at a call, with its average of the weights and its checks."""
    config = TrainConfig(images=10**9, batch_size=batch, lr=1e-3, ema_halflife_images=(50_000.0,))
    coupling = Independent(data)
    objective = flow_objective(
        MinibatchOT(coupling) if ot else coupling,
        LINEAR,
        Uniform(),
        Squared(),
        batch_size=batch,
        precision=precision,
    )
    state = new_state(network, config)
    records: Iterator[object] = train(state, objective, config, seed=0, every=1)
    return lambda: next(records)


def batches(data: Tensor, batch: int) -> Iterator[Tensor]:
    """The documented way: a shuffling DataLoader, begun anew when it ends."""
    while True:
        for (x1,) in DataLoader(TensorDataset(data), batch_size=batch, shuffle=True, drop_last=True):
            yield x1


def torchcfm_step(network: nn.Module, data: Tensor, batch: int) -> Step:
    """torchcfm's CIFAR-10 example: independent couplings, Adam, clipping, schedule, average in Python."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    matcher = ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    average, source = copy.deepcopy(network), batches(data, batch)

    def step() -> None:
        optimizer.zero_grad()
        x1 = next(source)
        t, x_t, u_t, *_ = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = torch.mean((network(x_t, t, None) - u_t) ** 2)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mine, kept = network.state_dict(), average.state_dict()
        for key in mine:
            kept[key].copy_(kept[key] * 0.9999 + mine[key] * 0.0001)

    return step


def flow_matching_step(network: nn.Module, data: Tensor, batch: int) -> Step:
    """flow_matching's documented loop: its affine path, AdamW, no average."""
    from flow_matching.path import CondOTProbPath

    path, source = CondOTProbPath(), batches(data, batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        x1 = next(source)
        sample = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
        loss = torch.pow(network(sample.x_t, sample.t, None) - sample.dx_t, 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def interleaved(candidates: dict[str, Step], steps: int, rounds: int) -> dict[str, float]:
    """Median seconds a step of each candidate, in turns of `steps` steps."""
    for work in candidates.values():
        for _ in range(2):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            start = time.perf_counter()
            for _ in range(steps):
                work()
            seconds[name].append((time.perf_counter() - start) / steps)
    return {name: statistics.median(times) for name, times in seconds.items()}


def training(name: str, steps: int, rounds: int) -> str:
    """A line of the table: images a second, and ours over theirs."""
    config, shape, batch = CASES[name]
    data = data_of(shape)
    found = interleaved(
        {
            "auto": ours(initialised(config, shape, None, 0), data, batch, "auto"),
            "fp32": ours(initialised(config, shape, None, 0), data, batch, "fp32"),
            "ot": ours(initialised(config, shape, None, 0), data, batch, "auto", ot=True),
            "torchcfm": torchcfm_step(initialised(config, shape, None, 0), data, batch),
            "flow_matching": flow_matching_step(initialised(config, shape, None, 0), data, batch),
        },
        steps,
        rounds,
    )
    rate = {key: f"{batch / seconds:,.0f}" for key, seconds in found.items()}
    ratios = [
        f"{found[peer] / found[mine]:.2f}" for mine in ("auto", "fp32") for peer in ("torchcfm", "flow_matching")
    ]
    cells = [name, str(batch), *rate.values(), *ratios, f"{found['ot'] / found['auto'] - 1:+.1%}"]
    return f"| {' | '.join(cells)} |"


def sampling(name: str, rounds: int) -> str:
    """A line of the table: samples a second of 16 Euler steps, against torchdiffeq's."""
    from torchdiffeq import odeint

    config, shape, batch = CASES[name]
    network = initialised(config, shape, None, 0).eval()
    x0, grid = torch.randn(batch, *shape), uniform_grid(16)

    def theirs() -> None:
        with torch.no_grad():
            odeint(lambda t, x: network(x, t.expand(len(x)), None), x0, grid.float(), method="euler")

    fields = {precision: network_field(network, precision) for precision in ("auto", "fp32")}
    found = interleaved(
        {
            "auto": lambda: integrate(fields["auto"], x0, grid, SOLVERS["euler"]),
            "fp32": lambda: integrate(fields["fp32"], x0, grid, SOLVERS["euler"]),
            "torchdiffeq": theirs,
        },
        1,
        rounds,
    )
    rate = [f"{batch / seconds:,.0f}" for seconds in found.values()]
    ratios = [f"{found['torchdiffeq'] / found[mine]:.2f}" for mine in ("auto", "fp32")]
    return f"| {' | '.join([name, str(batch), *rate, *ratios])} |"


def main() -> int:
    """Runs all and prints the tables."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that all runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="where to write the tables")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps, rounds = (1, 1) if args.quick else (5, 9)
    cases = list(islice(CASES, 2)) if args.quick else list(CASES)
    text = "\n".join(
        [
            f"`python benchmarks/training.py --threads {args.threads}` on {platform.machine()}, "
            f"torch {torch.__version__}:",
            "",
            "Training, images/s, then ours over theirs (auto: bfloat16 inside networks on processors with it)",
            "",
            "| network | batch | fmcore auto | fmcore fp32 | with minibatch OT | torchcfm | flow_matching "
            "| auto / torchcfm | auto / flow_matching | fp32 / torchcfm | fp32 / flow_matching | OT costs |",
            f"|{' --- |' * 12}",
            *(training(name, steps, rounds) for name in cases),
            "",
            "Sampling, 16 Euler steps, samples/s",
            "",
            "| network | batch | fmcore auto | fp32 | torchdiffeq | auto / torchdiffeq | fp32 / torchdiffeq |",
            f"|{' --- |' * 7}",
            *(sampling(name, rounds) for name in cases),
            "",
        ]
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
