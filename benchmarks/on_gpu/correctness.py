"""Whether a GPU computes what the CPU does, and repeats what it did."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from benchmarks.on_gpu.loops import config_of, objective_on, pixels, prepared
from benchmarks.on_gpu.sizes import BF16, DRIFT, EULER, EXACT, OK, TF32, Bench, Row
from fmcore.disk import checkpoint
from fmcore.flow import speed
from fmcore.flow.couplings import Independent
from fmcore.flow.fields import network_field
from fmcore.flow.times import uniform_grid
from fmcore.flow.training import Objective, new_state, train
from fmcore.models.networks import initialised
from fmcore.ode.reflow import draw
from fmcore.ode.solvers import integrate


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
    """The losses of 20 steps in fp32, on batches that are drawn on the CPU wherever the network is."""
    device, here = next(network.parameters()).device, objective_on(Independent(data), batch, "fp32")

    def drawn(generator: Generator, progress: float) -> Any:
        same = Generator().manual_seed(generator.initial_seed())
        return tree_map(lambda x: x if x is None else x.to(device), here.draw(same, progress))

    config = config_of(batch, 20)
    records = train(new_state(network, config), Objective(drawn, here.loss), config, seed=0, every=1)
    return torch.tensor([record.loss for record in records])


def correctness(bench: Bench, name: str, *, compiled: bool = False) -> list[Row]:
    """The same weights and inputs here and on the CPU; if `compiled`, only what compiling may break."""
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
    """40 steps at once, again, and with a checkpoint in the middle; the second says whether this GPU repeats."""
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
