"""How fast a GPU multiplies, trains and is fed."""

import gc
import tempfile
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Generator

from benchmarks.on_gpu.correctness import without_tf32
from benchmarks.on_gpu.loops import config_of, network_of, objective_on, pixels, prepared, steps_of, torchcfm_steps
from benchmarks.on_gpu.pages import first_line
from benchmarks.on_gpu.sizes import OK, Bench, Row, Step
from benchmarks.on_gpu.timing import clock, interleaved
from fmcore.disk.pairs import map_pairs, open_pairs, seal_pairs, write_shard
from fmcore.flow import speed
from fmcore.flow.couplings import Coupling, Independent, Pairs, Sharded, Stored
from fmcore.flow.pixels import dequantise
from fmcore.flow.training import Objective, new_state


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
        step: Step | None = None  # lets go of one that failed
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
