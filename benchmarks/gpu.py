"""Everything on one GPU in a call of at most ten minutes: whether it computes the right things, and how fast.

    python benchmarks/gpu.py [--minutes 9] [--out FILE]
    python benchmarks/gpu.py --device cpu --quick     tiny networks, to see that all parts run

The numbers of each part go to a JSON file beside --out as soon as they are there, and the tables with them. A
later call with the same --out does what is left, then again what failed, was wrong or was killed, so that machines
lent for minutes suffice. Candidates take turns, and medians are shown; a training loop that cannot start is named,
and the others are still measured. torchcfm's loop is restated from its CIFAR-10 example. Beside torch it needs
safetensors, jaxtyping, psutil and diffusers; without torchcfm its loop is skipped.
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fmcore.disk import checkpoint  # noqa: E402
from fmcore.disk.files import read_json, write_file  # noqa: E402
from fmcore.disk.pairs import map_pairs, open_pairs, seal_pairs, write_shard  # noqa: E402
from fmcore.flow import speed  # noqa: E402
from fmcore.flow.couplings import Coupling, Independent, Pairs, Sharded, Stored  # noqa: E402
from fmcore.flow.fields import autocast_dtype, network_field  # noqa: E402
from fmcore.flow.losses import Squared  # noqa: E402
from fmcore.flow.paths import LINEAR  # noqa: E402
from fmcore.flow.pixels import dequantise  # noqa: E402
from fmcore.flow.times import Uniform, uniform_grid  # noqa: E402
from fmcore.flow.training import Objective, TrainConfig, TrainState, flow_objective, new_state, train  # noqa: E402
from fmcore.models.networks import MLP, UNet, initialised  # noqa: E402
from fmcore.ode.reflow import draw, generate_pairs  # noqa: E402
from fmcore.ode.solvers import SOLVERS, integrate  # noqa: E402

Row = dict[str, Any]
Step = Callable[[], object]
EULER, HEUN = SOLVERS["euler"], SOLVERS["heun"]
# Largest difference from the CPU in fp32, over the largest value there. Sums in another order make 1e-6 of it;
# TensorFloat32, which torch allows in convolutions, keeps 10 bits of a number and bfloat16 7. Losses drift apart.
EXACT, TF32, BF16, DRIFT = 1e-4, 1e-2, 5e-2, 1e-3
OK = "as it should be"  # the column of rows that may be wrong


@dataclass(frozen=True)
class Size:
    """How much to do: the networks, the batches each is measured in, and how long to look."""

    mlp: MLP
    small: UNet
    large: UNet
    shape: tuple[int, ...]
    images: int
    checked: int
    matrix: int
    train_small: int
    train_large: tuple[int, ...]
    every: int
    pairs: tuple[int, ...]
    steps: int
    samples: tuple[int, ...]
    rounds: int
    turn_seconds: float
    limit_seconds: float = 40.0


FULL = Size(
    mlp=MLP(width=512, depth=3),
    small=UNet(channels=(32, 64, 128), layers=1),
    large=UNet(channels=(128, 256, 256, 256), layers=4),  # 56.1M parameters; EDM's for CIFAR-10 has 55.7M
    shape=(3, 32, 32),
    images=50_000,
    checked=16,
    matrix=8192,
    train_small=256,
    train_large=(256, 128, 512),
    every=10,  # the stages take one record in 50 steps: less waiting than is measured here
    pairs=(256, 1024, 2048),
    steps=18,
    samples=(1, 64, 1024),
    rounds=5,
    turn_seconds=0.3,
)
QUICK = Size(
    mlp=MLP(width=16, depth=1),
    small=UNet(channels=(8,), layers=1),
    large=UNet(channels=(8, 16), layers=1),
    shape=(3, 8, 8),
    images=64,
    checked=4,
    matrix=128,
    train_small=8,
    train_large=(8, 4),
    every=1,
    pairs=(4, 8),
    steps=2,
    samples=(1, 4),
    rounds=1,
    turn_seconds=0.0,
)


class Bench(NamedTuple):
    """What every part is given: how much to do, where, and what the parts before it found."""

    size: Size
    device: torch.device
    parts: dict[str, Any]


class Part(NamedTuple):
    """What is recorded at once; `seconds` is what it takes on a large GPU, compilation included."""

    name: str
    seconds: float
    measure: Callable[[Bench], list[Row]]


# --- timing -----------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Waits for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device, work: Step, times: int = 1) -> float:
    """Seconds of one run of some work, the GPU's part included."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - start) / times


def interleaved(bench: Bench, candidates: dict[str, Step]) -> dict[str, float]:
    """Median seconds of each candidate, in turns; fewer rounds where they take long."""
    size, times = bench.size, {}
    for name, work in candidates.items():
        once = clock(bench.device, work)
        if once < 15:  # libraries start, kernels are chosen; what takes longer is run once a turn anyway
            once = clock(bench.device, work)
        times[name] = max(1, min(200, round(size.turn_seconds / once)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for k in range(size.rounds):
        if k and time.perf_counter() - start > size.limit_seconds:
            break
        for name, work in candidates.items():
            seconds[name].append(clock(bench.device, work, times[name]))
    return {name: statistics.median(found) for name, found in seconds.items()}


# --- what is measured -------------------------------------------------------------------------------------


def pixels(bench: Bench) -> Tensor:
    """8-bit images to train on, on the device; speed does not depend on what they show."""
    g = Generator().manual_seed(0)
    shape = (bench.size.images, *bench.size.shape)
    return torch.randint(256, shape, dtype=torch.uint8, generator=g).to(bench.device)


def network_of(bench: Bench, name: str) -> nn.Module:
    """The small or the large U-Net on the device."""
    return initialised(getattr(bench.size, name), bench.size.shape, None, 0).to(bench.device)


def objective_on(coupling: Coupling, batch: int, precision: str) -> Objective:
    """Plain flow matching."""
    return flow_objective(coupling, LINEAR, Uniform(), Squared(), batch_size=batch, precision=precision)


def config_of(batch: int, steps: int) -> TrainConfig:
    """A training of that many steps, with an average of the weights."""
    return TrainConfig(images=steps * batch, batch_size=batch, lr=1e-3, ema_halflife_images=(50_000.0,))


def steps_of(bench: Bench, state: TrainState, objective: Objective, batch: int) -> Step:
    """`every` steps of fmcore's loop at a call, which ends in a record as its callers see it."""
    records = train(state, objective, config_of(batch, 10**7), seed=0, every=bench.size.every)
    return lambda: next(records)


def prepared(bench: Bench, name: str, precision: str, compiling: str, *, training: bool) -> tuple[nn.Module, str]:
    """A U-Net as a run would have it, and what `speed.prepare` says of it."""
    network = network_of(bench, name)
    said = speed.prepare(network, precision, compiling, work=1e18, training=training)
    return network, said


def torchcfm_steps(bench: Bench, network: nn.Module, data: Tensor, batch: int) -> Step:
    """torchcfm's CIFAR-10 example, `every` steps at a call: workers, Adam, clipping, an average in Python."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    on_gpu = bench.device.type == "cuda"
    loader = DataLoader(
        TensorDataset(data),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=4 if on_gpu else 0,
        persistent_workers=on_gpu,
        pin_memory=on_gpu,
    )
    source = (x1 for _ in count() for (x1,) in loader)
    matcher = ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    average = copy.deepcopy(network)

    def steps() -> None:
        for _ in range(bench.size.every):
            optimizer.zero_grad()
            x1 = next(source).to(bench.device)
            t, x_t, u_t, *_ = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = torch.mean((network(x_t, t, None) - u_t) ** 2)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mine, kept = network.state_dict(), average.state_dict()
            for key in mine:
                kept[key].copy_(kept[key] * 0.9999 + mine[key] * 0.0001)

    return steps


# --- parts ------------------------------------------------------------------------------------------------


@contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 as on a CPU; torch lets convolutions on a GPU round their inputs to TensorFloat32."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest value expected."""
    found, expected = found.detach().cpu(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def shaken(network: nn.Module) -> nn.Module:
    """The network with noise on its weights: some start at zero, and would hide what they are multiplied with."""
    g = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))
    return network


def losses(network: nn.Module, data: Tensor, batch: int) -> Tensor:
    """Those of 20 steps in fp32, on batches that are drawn on the CPU wherever the network is."""
    device, here = next(network.parameters()).device, objective_on(Independent(data), batch, "fp32")

    def drawn(generator: Generator, progress: float) -> Any:
        same = Generator().manual_seed(generator.initial_seed())
        return tree_map(lambda x: x if x is None else x.to(device), here.draw(same, progress))

    config = config_of(batch, 20)
    records = train(new_state(network, config), Objective(drawn, here.loss), config, seed=0, every=1)
    return torch.tensor([record.loss for record in records])


def correctness(bench: Bench, name: str, *, compiled: bool = False) -> list[Row]:
    """The same weights and inputs here and on the CPU; compiled, only what compiling may break."""
    size, shape = bench.size, (1, 8, 8) if name == "mlp" else bench.size.shape
    here = shaken(initialised(getattr(size, name), shape, None, 0))
    data = draw(0, 4 * size.checked, shape=shape, seed=0)[0].clamp(-1, 1)
    x, t = data[: size.checked], torch.linspace(0, 1, size.checked)

    def there(precision: str, *, training: bool = False) -> nn.Module:
        network = copy.deepcopy(here).to(bench.device)
        if compiled:
            speed.prepare(network, precision, "on", work=1e18, training=training)
        return network

    def forward(network: nn.Module, precision: str) -> Tensor:
        device = next(network.parameters()).device
        with torch.no_grad():
            return network_field(network, precision)(x.to(device), t.to(device), None).cpu()

    def sampled(network: nn.Module) -> Tensor:
        device = next(network.parameters()).device
        return integrate(network_field(network, "fp32"), x.to(device), uniform_grid(8), EULER).cpu()

    expected = forward(here, "fp32")
    found = {"forward, bf16": (difference(forward(there("bf16"), "bf16"), expected), BF16)}
    if not compiled:
        found["forward, fp32 as torch sets it"] = (difference(forward(there("fp32"), "fp32"), expected), TF32)
    with without_tf32():
        if not compiled:
            found["forward, fp32"] = (difference(forward(there("fp32"), "fp32"), expected), EXACT)
            found["8 Euler steps, fp32"] = (difference(sampled(there("fp32")), sampled(here)), EXACT)
        ours = losses(there("fp32", training=True), data, size.checked)
        found["losses of 20 steps, fp32"] = (difference(ours, losses(here, data, size.checked)), DRIFT)
    label = f"{name}, compiled" if compiled else name
    return [
        {"network": label, "what": what, "largest difference": value, "tolerance": most, OK: value <= most}
        for what, (value, most) in found.items()
    ]


def resume(bench: Bench) -> list[Row]:
    """40 steps at once, again, and with a checkpoint in the middle: the second says what this GPU repeats."""
    batch = bench.size.checked
    config, data = config_of(batch, 40), pixels(bench)
    objective = objective_on(Independent(data), batch, "auto")

    def weights(restarted: bool) -> list[Tensor]:
        state = new_state(prepared(bench, "small", "auto", "off", training=True)[0], config)
        if restarted:
            list(train(state, objective, config, seed=0, stop=20))
            with tempfile.TemporaryDirectory() as folder:
                checkpoint.save(state, Path(folder))
                state = new_state(prepared(bench, "small", "auto", "off", training=True)[0], config)
                checkpoint.restore(state, Path(folder))
        list(train(state, objective, config, seed=0))
        return [p.detach() for p in state.network.parameters()] + state.averages[0]

    straight, rows = weights(False), []
    for what, other in (("run again", weights(False)), ("resumed at step 20", weights(True))):
        pairs = list(zip(straight, other, strict=True))
        equal = all(torch.equal(a, b) for a, b in pairs)
        largest = max(float((a - b).abs().max()) for a, b in pairs)
        rows.append({"what": what, "equal bits": equal, "largest difference": largest})
    return rows


def matmul(bench: Bench) -> list[Row]:
    """The rate of large matrix products, which MFU is counted against."""
    n = bench.size.matrix
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    a = {name: torch.randn(n, n, device=bench.device, dtype=dtype) for name, dtype in kinds.items()}
    with without_tf32():
        found = interleaved(bench, {name: lambda x=x: x @ x for name, x in a.items()})
    return [{"dtype": name, "side": n, "TFLOP/s": 2 * n**3 / found[name] / 1e12} for name in kinds]


def bf16_rate(bench: Bench) -> float | None:
    """Operations a second of the bfloat16 products of this run, if they were measured."""
    rows = bench.parts.get("matmul", {}).get("rows", [])
    return next((1e12 * row["TFLOP/s"] for row in rows if row["dtype"] == "bfloat16"), None)


def training(bench: Bench, name: str, batch: int) -> list[Row]:
    """Images a second and peak memory of fmcore's loop, set up in several ways, and of torchcfm's."""
    data, device = pixels(bench), bench.device
    plain = network_of(bench, name)
    operations, parameters = speed.flops(plain, bench.size.shape, None), sum(p.numel() for p in plain.parameters())
    del plain
    said: dict[str, str] = {}

    def ours(precision: str, compiling: str, layout: torch.memory_format | None, loop: str) -> Step:
        network, said[loop] = prepared(bench, name, precision, compiling, training=True)
        if layout is not None:
            network.to(memory_format=layout)
            said[loop] += ", back in torch's own layout"
        state = new_state(network, config_of(batch, 10**7))
        return steps_of(bench, state, objective_on(Independent(data), batch, precision), batch)

    candidates: dict[str, Callable[[], Step]] = {
        loop: lambda loop=loop, chosen=chosen: ours(*chosen, loop)
        for loop, chosen in {
            "fmcore auto": ("auto", "off", None),
            "fmcore auto, own layout": ("auto", "off", torch.contiguous_format),
            "fmcore auto, compiled": ("auto", "on", None),
            "fmcore fp32": ("fp32", "off", None),
        }.items()
    }
    if find_spec("torchcfm") and find_spec("ot"):  # POT, which it imports
        candidates["torchcfm"] = lambda: torchcfm_steps(
            bench, network_of(bench, name), dequantise(data.cpu()), batch
        )
    steps: dict[str, Step] = {}
    warmed: dict[str, Row] = {}
    failed: list[Row] = []
    for loop, make in candidates.items():
        step: Step | None = None  # else one that failed is still there
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated(device)
        try:
            step = make()
            warmed[loop] = {"warm-up, s": clock(device, step)}
            if device.type == "cuda":  # of later steps: compiling takes memory of its own
                torch.cuda.reset_peak_memory_stats(device)
                clock(device, step)
                warmed[loop]["peak MiB"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
            steps[loop] = step
        except Exception as error:  # no memory, no compiler: the others are still to be measured
            traceback.print_exc()
            said[loop] = f"failed: {first_line(error)}"
            failed.append({"network": name, "batch": batch, "loop": loop, "prepared": said[loop], OK: False})
    if not steps:
        raise RuntimeError(f"no loop could start: {'; '.join(said.values())}")
    seconds, rate = interleaved(bench, steps), bf16_rate(bench)
    rows: list[Row] = []
    for loop, taken in seconds.items():
        images = batch * bench.size.every / taken
        rows.append(
            {
                "network": name,
                "parameters": parameters,
                "batch": batch,
                "loop": loop,
                "images/s": images,
                **({"over torchcfm": seconds["torchcfm"] / taken} if "torchcfm" in seconds else {}),
                "TFLOP/s": 3 * operations * images / 1e12,
                **({"MFU": 3 * operations * images / rate} if rate else {}),
                **warmed[loop],
                "prepared": said.get(loop, "as documented"),
            }
        )
    if "torchcfm" not in candidates:
        rows.append({"network": name, "batch": batch, "loop": "torchcfm", "prepared": "not installed, skipped"})
    return rows + failed


def loading(bench: Bench, name: str) -> list[Row]:
    """Share of the compiled loop's step that drawing takes, against the same steps on one batch."""
    size = bench.size
    batch = size.train_small if name == "small" else size.train_large[0]
    network, _ = prepared(bench, name, "auto", "on", training=True)
    state = new_state(network, config_of(batch, 10**7))
    with tempfile.TemporaryDirectory() as temporary:
        folder, part = Path(temporary), size.images // 4
        shards = []
        for start in range(0, 4 * part, part):
            g = Generator().manual_seed(start)
            x0, x1 = (torch.randn(part, *size.shape, generator=g).half() for _ in range(2))
            shards.append(write_shard(folder, start, [Pairs(x0, x1)]))
        seal_pairs(folder, shards, {})
        couplings: dict[str, Coupling] = {
            "images, uint8 on the device": Independent(pixels(bench)),
            "pairs, half on the device": Stored(open_pairs(folder, bench.device)[0]),
            "pairs, half in files on the host": Sharded(map_pairs(folder)[0]),
        }
        objectives = {what: objective_on(coupling, batch, "auto") for what, coupling in couplings.items()}
        first = next(iter(objectives.values()))
        kept = first.draw(Generator(bench.device).manual_seed(0), 0.0)
        objectives["one batch kept"] = Objective(lambda generator, progress: kept, first.loss)
        found = interleaved(
            bench, {what: steps_of(bench, state, objective, batch) for what, objective in objectives.items()}
        )
    least = found["one batch kept"]
    return [
        {
            "network": name,
            "batch": batch,
            "draws": what,
            "images/s": batch * size.every / seconds,
            "ms a step": 1e3 * seconds / size.every,
            "share of the step": 1 - least / seconds,
        }
        for what, seconds in found.items()
    ]


def pairs(bench: Bench, name: str, batch: int) -> list[Row]:
    """Pairs a second from noise to a file, and the share of it that is not the network's."""
    size, device = bench.size, bench.device
    network, said = prepared(bench, name, "auto", "off", training=False)
    field, grid = network_field(network.eval(), "auto"), uniform_grid(size.steps)
    batches = 2 if name == "large" else 8
    total = batches * batch
    noise = draw(0, batch, shape=size.shape, seed=0)[0].to(device)

    def alone() -> None:
        for _ in range(batches):
            integrate(field, noise, grid, HEUN)

    with tempfile.TemporaryDirectory() as folder:

        def whole() -> None:
            made = generate_pairs(
                field,
                total,
                shape=size.shape,
                seed=0,
                grid=grid,
                solver=HEUN,
                batch=batch,
                dtype=torch.float16,
                device=device,
            )
            write_shard(Path(folder), 0, made)

        found = interleaved(
            bench,
            {"whole": whole, "network": alone, "noise": lambda: draw(0, total, shape=size.shape, seed=0)},
        )
    return [
        {
            "network": name,
            "batch": batch,
            "Heun steps": size.steps,
            "pairs/s": total / found["whole"],
            "network alone, pairs/s": total / found["network"],
            "share not the network": 1 - found["network"] / found["whole"],
            "noise alone, pairs/s": total / found["noise"],
            "prepared": said,
        }
    ]


def one_step(bench: Bench, name: str) -> list[Row]:
    """Samples a second at 1 NFE over those of the bare forward pass, with noise at hand and from noise to host."""
    network, said = prepared(bench, name, "auto", "off", training=False)
    field, grid, device = network_field(network.eval(), "auto"), uniform_grid(1), bench.device
    dtype, rows = autocast_dtype("auto", device), []
    for batch in bench.size.samples:
        x, t = draw(0, batch, shape=bench.size.shape, seed=0)[0].to(device), torch.zeros(batch, device=device)

        def bare(x: Tensor = x, t: Tensor = t) -> None:
            with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                network(x, t, None)

        def sampled(batch: int = batch) -> None:
            x0 = draw(0, batch, shape=bench.size.shape, seed=0)[0]
            integrate(field, x0.to(device), grid, EULER).cpu()

        found = interleaved(
            bench,
            {"bare": bare, "step": lambda x=x: integrate(field, x, grid, EULER), "sampled": sampled},
        )
        rows.append(
            {
                "network": name,
                "batch": batch,
                "forward alone, samples/s": batch / found["bare"],
                "1 NFE, samples/s": batch / found["step"],
                "1 NFE over forward": found["bare"] / found["step"],
                "with noise and copies, samples/s": batch / found["sampled"],
                "that over forward": found["bare"] / found["sampled"],
                "prepared": said,
            }
        )
    return rows


def parts(size: Size) -> list[Part]:
    """All parts, what matters most first; loading follows the training whose compiled kernels it finds on disk."""
    first, *others = size.train_large
    return [
        Part("correctness/mlp", 15, lambda bench: correctness(bench, "mlp")),
        Part("correctness/small", 30, lambda bench: correctness(bench, "small")),
        Part("resume", 20, lambda bench: resume(bench)),
        Part("matmul", 10, lambda bench: matmul(bench)),
        Part(f"training/large/{first}", 200, lambda bench: training(bench, "large", first)),
        Part("loading/large", 150, lambda bench: loading(bench, "large")),
        Part(f"training/small/{size.train_small}", 90, lambda bench: training(bench, "small", size.train_small)),
        Part("loading/small", 60, lambda bench: loading(bench, "small")),
        *(
            Part(
                f"pairs/{name}/{batch}",
                20 + batch / 20,
                lambda bench, name=name, batch=batch: pairs(bench, name, batch),
            )
            for name in ("small", "large")
            for batch in size.pairs
        ),
        Part("one step/small", 20, lambda bench: one_step(bench, "small")),
        Part("one step/large", 30, lambda bench: one_step(bench, "large")),
        Part("correctness/compiled", 90, lambda bench: correctness(bench, "small", compiled=True)),
        *(
            Part(
                f"training/large/{batch}",
                200 * max(1, batch / first),
                lambda bench, batch=batch: training(bench, "large", batch),
            )
            for batch in others
        ),
    ]


# --- running ----------------------------------------------------------------------------------------------

TITLES = {
    "correctness": "Against the same on the CPU in float32; differences over the largest value",
    "resume": "Training resumed from a checkpoint against 40 steps at once",
    "matmul": "Matrix products, without TensorFloat32",
    "training": "Training; three forward passes' operations a step, MFU against the bfloat16 products above",
    "loading": "Drawing noise, images or pairs in the compiled loop",
    "pairs": "Making pairs, from noise to a file of float16",
    "one step": "Sampling in one step",
}


def first_line(error: Exception) -> str:
    """An error as a table has room for it."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run(part: Part, bench: Bench) -> Row:
    """The part's record, its error's first line if it fails."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    torch.compiler.reset()  # else networks of other parts would count as other shapes of this one's
    start = time.perf_counter()
    try:
        rows = part.measure(bench)
        json.dumps(rows, allow_nan=False)
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "error": first_line(error)}
    return {"status": "done", "seconds": time.perf_counter() - start, "rows": rows}


def wrong(record: Row) -> bool:
    """Whether something differs from the CPU's by more than it should, or could not start."""
    return not all(row.get(OK, True) for row in record.get("rows", []))


def cell(value: Any) -> str:
    """A value as the tables show it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def tables(rows: list[Row]) -> list[str]:
    """Rows of dictionaries as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[cell(row[key]) if key in row else "" for key in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]


def page(about: str, records: dict[str, Any], left: list[str]) -> str:
    """All that is known of this device, as Markdown."""
    lines = [f"`python benchmarks/gpu.py` on {about}:", ""]
    for section, title in TITLES.items():
        rows = [
            row
            for name, record in records.items()
            if name.partition("/")[0] == section
            for row in record.get("rows", [])
        ]
        lines += [title, "", *tables(rows), ""] if rows else []
    failed = [f"- {name}: {record['error']}" for name, record in records.items() if record["status"] == "failed"]
    lines += ["Failed:", "", *failed, ""] if failed else []
    lines += [f"Left for another call: {', '.join(left)}.", ""] if left else []
    return "\n".join(lines)


def described(device: torch.device, quick: bool) -> tuple[str, str]:
    """What results are kept under (the device and torch's version), and a line about the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    key = f"{name}, torch {torch.__version__}{', quick' if quick else ''}"
    if device.type != "cuda":
        return key, key
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return key, f"{key}, {versions}, {memory:.0f} GiB, {os.cpu_count()} host threads"


def main(argv: list[str] | None = None) -> int:
    """Runs what is left of the parts; 1 if any failed or is wrong, 2 without a GPU."""
    started = time.monotonic()
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that all runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --quick")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no part that would end later")
    parser.add_argument("--out", type=Path, help="where to write the tables; the numbers go to a .json beside it")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu only shows that the parts run: add --quick")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device (--device cpu --quick runs here)", file=sys.stderr)
        return 2
    speed.keep_freed_memory()
    device, size = torch.device(args.device), QUICK if args.quick else FULL
    numbers = args.out.with_suffix(".json") if args.out else None
    results = read_json(numbers) if numbers and numbers.exists() else {}
    key, about = described(device, args.quick)
    known = results.setdefault(key, {})
    wanted = parts(size)
    names = [part.name for part in wanted]

    def status(name: str) -> str:
        return str(known.get(name, {}).get("status", "left"))

    def shown() -> str:
        left = [name for name in names if status(name) in ("left", "begun")]
        return page(about, {name: known[name] for name in names if name in known}, left)

    def kept() -> None:
        if args.out and numbers:
            write_file(numbers, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
            write_file(args.out, shown().encode())

    # Compiling takes minutes in all; what is compiled is the same without.
    stance = torch.compiler.set_stance("force_eager") if args.quick else nullcontext()
    with stance:
        for part in sorted(wanted, key=lambda part: part.name in known):
            if status(part.name) == "done" and not wrong(known[part.name]):
                continue
            expected = 0.0 if args.quick else part.seconds
            if time.monotonic() - started + expected > 60 * args.minutes:
                continue
            known[part.name] = {**known.get(part.name, {}), "status": "begun"}
            kept()
            known[part.name] = record = run(part, Bench(size, device, known))
            print(
                f"{part.name}: {record.get('error') or format(record['seconds'], '.1f') + ' s'}", file=sys.stderr
            )
            kept()
    kept()
    print(shown())
    return int(any(status(name) == "failed" or wrong(known.get(name, {})) for name in names))


if __name__ == "__main__":
    sys.exit(main())
