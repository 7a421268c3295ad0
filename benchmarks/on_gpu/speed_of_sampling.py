"""How fast a GPU makes pairs and samples."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.on_gpu.loops import prepared
from benchmarks.on_gpu.sizes import EULER, HEUN, Bench, Row
from benchmarks.on_gpu.timing import interleaved
from fmcore.disk.pairs import write_shard
from fmcore.flow.fields import autocast_dtype, network_field
from fmcore.flow.times import uniform_grid
from fmcore.ode.reflow import draw, generate_pairs
from fmcore.ode.solvers import integrate


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
