"""Training and sampling speed against the loops that torchcfm and flow_matching document, and torchdiffeq's Euler.

    python benchmarks/training.py [--quick] [--threads 2] [--only training|sampling] [--out FILE]

Every candidate works on the same network, data and batch, in a process of its own, as its users would run it:
fmcore with the allocator and the memory layout its pipeline chooses, the others as their documentation has them
(Adam, a DataLoader, and an average of the weights kept in Python in torchcfm's image example, which also clips
gradients). They take turns, and medians are shown. Compare ratios; images a second depend on the machine. "Use" is
the rate of the network's own operations over that of a large matrix product in the same run and precision.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402
from fmcore.flow.couplings import Independent, MinibatchOT  # noqa: E402
from fmcore.flow.fields import autocast_dtype, network_field  # noqa: E402
from fmcore.flow.losses import Squared  # noqa: E402
from fmcore.flow.paths import LINEAR  # noqa: E402
from fmcore.flow.speed import flops, keep_freed_memory, prepare  # noqa: E402
from fmcore.flow.times import Uniform, uniform_grid  # noqa: E402
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train  # noqa: E402
from fmcore.models.networks import MLP, UNet, initialised  # noqa: E402
from fmcore.ode.solvers import SOLVERS, integrate  # noqa: E402

Step = Callable[[], object]
NFE = 16


class Case(NamedTuple):
    """A network, the data's shape, the batch, and how many training steps, or samplings, a turn takes."""

    network: MLP | UNet
    shape: tuple[int, ...]
    batch: int
    steps: int
    samplings: int


CASES = {
    "MLP 512x3, 8x8": Case(MLP(width=512, depth=3), (1, 8, 8), 256, 30, 10),
    "U-Net, 8x8": Case(UNet(channels=(32, 64), layers=1), (1, 8, 8), 128, 10, 3),
    "U-Net, 28x28": Case(UNet(channels=(32, 64, 64), layers=1), (1, 28, 28), 64, 3, 1),
    "U-Net, 32x32 RGB": Case(UNet(channels=(32, 64, 128), layers=1), (3, 32, 32), 64, 2, 1),
}


def data_of(shape: tuple[int, ...], count: int = 4096) -> Tensor:
    """Images to train on; speed does not depend on what they show."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ours(case: Case, precision: str, *, ot: bool = False) -> Step:
    """One optimizer step of fmcore's loop at a call, with its average of the weights and its checks."""
    keep_freed_memory()
    network = initialised(case.network, case.shape, None, 0)
    prepare(network, precision, "off", work=0.0, training=True)
    config = TrainConfig(images=10**9, batch_size=case.batch, lr=1e-3, ema_halflife_images=(50_000.0,))
    coupling = Independent(data_of(case.shape))
    objective = flow_objective(
        MinibatchOT(coupling) if ot else coupling,
        LINEAR,
        Uniform(),
        Squared(),
        batch_size=case.batch,
        precision=precision,
    )
    records: Iterator[object] = train(new_state(network, config), objective, config, seed=0, every=1)
    return lambda: next(records)


def batches(case: Case) -> Iterator[Tensor]:
    """Batches as the peers document it: a shuffling DataLoader, begun anew when it ends."""
    data = TensorDataset(data_of(case.shape))
    while True:
        for (x1,) in DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True):
            yield x1


def torchcfm_step(case: Case) -> Step:
    """torchcfm's CIFAR-10 example: independent couplings, Adam, clipping, schedule, average in Python."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    network = initialised(case.network, case.shape, None, 0)
    matcher = ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    average, source = copy.deepcopy(network), batches(case)

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


def flow_matching_step(case: Case) -> Step:
    """flow_matching's documented loop: its affine path, AdamW, no average."""
    from flow_matching.path import CondOTProbPath

    network = initialised(case.network, case.shape, None, 0)
    path, source = CondOTProbPath(), batches(case)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        x1 = next(source)
        sample = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
        loss = torch.pow(network(sample.x_t, sample.t, None) - sample.dx_t, 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def our_samples(case: Case, precision: str, compiling: str = "off") -> Step:
    """16 Euler steps of fmcore."""
    keep_freed_memory()
    network = filled(initialised(case.network, case.shape, None, 0)).requires_grad_(False)
    prepare(network, precision, compiling, work=0.0, training=False)
    field, x0, grid = network_field(network, precision), torch.randn(case.batch, *case.shape), uniform_grid(NFE)
    return lambda: integrate(field, x0, grid, SOLVERS["euler"])


def torchdiffeq_samples(case: Case) -> Step:
    """16 Euler steps of torchdiffeq."""
    from torchdiffeq import odeint

    network = filled(initialised(case.network, case.shape, None, 0))
    x0, grid = torch.randn(case.batch, *case.shape), uniform_grid(NFE).float()

    def sample() -> None:
        with torch.no_grad():
            odeint(lambda t, x: network(x, t.expand(len(x)), None), x0, grid, method="euler")

    return sample


def filled(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with random weights where it starts with zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return network.eval()


def product(case: Case) -> Step:
    """A product of two 2048 x 2048 matrices in what `auto` computes in; emulated bfloat16 would take minutes."""
    dtype = autocast_dtype("auto", torch.device("cpu")) or torch.float32
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    return lambda: a @ b


TRAINING: dict[str, Callable[[Case], Step]] = {
    "auto": lambda case: ours(case, "auto"),
    "fp32": lambda case: ours(case, "fp32"),
    "ot": lambda case: ours(case, "auto", ot=True),
    "torchcfm": torchcfm_step,
    "flow_matching": flow_matching_step,
    "product": product,
}
SAMPLING: dict[str, Callable[[Case], Step]] = {
    "auto": lambda case: our_samples(case, "auto"),
    "fp32": lambda case: our_samples(case, "fp32"),
    "compiled": lambda case: our_samples(case, "auto", "on"),
    "torchdiffeq": torchdiffeq_samples,
}


def serve(kind: str, case: str, candidate: str, threads: int) -> None:
    """A worker: for each number it reads it makes so many steps and answers with the seconds they took.

    Its first line is what the first step took, with the time to compile; its last one, its peak memory.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    start = time.perf_counter()
    step = {"training": TRAINING, "sampling": SAMPLING}[kind][candidate](CASES[case])
    step()
    print(time.perf_counter() - start, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    print(next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM")), 0.0), flush=True)


class Found(NamedTuple):
    """Median seconds a step, seconds of the first one, and peak memory in MiB, of one candidate."""

    seconds: float
    first: float
    peak: float


def taken_in_turns(kind: str, case: str, candidates: list[str], threads: int, rounds: int) -> dict[str, Found]:
    """Lets the candidates' processes work in turns; while one does, the others wait."""
    me = [sys.executable, __file__, "--worker", kind, case]
    with ExitStack() as stack:
        workers = {}
        # An empty cache, so that the time of compiling is measured.
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        for name in candidates:
            process = subprocess.Popen(
                [*me, name, "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            workers[name] = (process, float(process.stdout.readline()))

        def turn(name: str, steps: int) -> float:
            process, _ = workers[name]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            return float(process.stdout.readline()) / steps

        steps = CASES[case].steps if kind == "training" else CASES[case].samplings
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for round_ in range(rounds + 1):
            for name in candidates:
                taken = turn(name, steps if round_ else 2)  # the first turn warms up
                if round_:
                    seconds[name].append(taken)
        found = {}
        for name, (process, first) in workers.items():
            rest, _ = process.communicate()
            found[name] = Found(statistics.median(seconds[name]), first, float(rest.split()[-1]))
    return found


def training(name: str, threads: int, rounds: int) -> str:
    """A line of the table: images a second, and ours over theirs."""
    case = CASES[name]
    found = taken_in_turns("training", name, list(TRAINING), threads, rounds)
    rate = {key: case.batch / one.seconds for key, one in found.items()}
    peak = 2 * 2048**3 / found["product"].seconds
    use = 3 * flops(initialised(case.network, case.shape, None, 0), case.shape, None) * rate["auto"] / peak
    cells = [name, str(case.batch), *(f"{rate[key]:,.0f}" for key in TRAINING if key != "product")]
    for mine in ("auto", "fp32"):
        cells += [f"{rate[mine] / rate[peer]:.2f}" for peer in ("torchcfm", "flow_matching")]
    cells += [f"{rate['auto'] / rate['ot'] - 1:+.1%}", f"{use:.0%}"]
    cells += [f"{found['auto'].peak:,.0f} / {found['torchcfm'].peak:,.0f}"]
    return f"| {' | '.join(cells)} |"


def sampling(name: str, threads: int, rounds: int) -> str:
    """A line of the table: samples a second of 16 Euler steps, against torchdiffeq's."""
    case = CASES[name]
    found = taken_in_turns("sampling", name, list(SAMPLING), threads, rounds)
    cells = [name, str(case.batch), *(f"{case.batch / one.seconds:,.0f}" for one in found.values())]
    theirs = found["torchdiffeq"].seconds
    cells += [f"{theirs / found[mine].seconds:.2f}" for mine in ("auto", "fp32", "compiled")]
    cells.append(f"{found['compiled'].first - found['auto'].first:.0f}")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Runs all and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that all runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("training", "sampling"), help="one half, which takes half as long")
    parser.add_argument("--out", type=Path, help="where to write the tables")
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "CASE", "CANDIDATE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(*args.worker, args.threads)
        return 0
    rounds = 1 if args.quick else 7
    cases = list(CASES)[: 2 if args.quick else None]
    only = f" --only {args.only}" if args.only else ""
    command = f"python benchmarks/training.py --threads {args.threads}{only}"
    lines = [f"`{command}` on {machine.kind()}, torch {torch.__version__}:", ""]
    if args.only != "sampling":
        lines += [
            "Training, images/s, then ours over theirs (auto: bfloat16 inside networks on processors with it), "
            "what minibatch OT costs, use of the rate of a large matrix product in the same, peak memory of the "
            "process with its imports, MiB",
            "",
            "| network | batch | fmcore auto | fmcore fp32 | with minibatch OT | torchcfm | flow_matching "
            "| auto / torchcfm | auto / flow_matching | fp32 / torchcfm | fp32 / flow_matching | OT costs | use "
            "| peak, ours / torchcfm |",
            f"|{' --- |' * 14}",
            *(training(name, args.threads, rounds) for name in cases),
            "",
        ]
    if args.only != "training":
        lines += [
            f"Sampling, {NFE} Euler steps, samples/s, then ours over torchdiffeq's, and what compiling took",
            "",
            "| network | batch | fmcore auto | fp32 | auto, compiled | torchdiffeq "
            "| auto / torchdiffeq | fp32 / torchdiffeq | compiled / torchdiffeq | compiling, s |",
            f"|{' --- |' * 10}",
            *(sampling(name, args.threads, rounds) for name in cases),
            "",
        ]
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
