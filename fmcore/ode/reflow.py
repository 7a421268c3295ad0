"""The coupling a field induces: noise x_0 and the sample x_1 that the ODE carries it to.

Liu et al., "Flow Straight and Fast" (arXiv:2209.03003), section 2.2: the pair (Z_0, Z_1) of a rectified flow
has no larger transport cost than the coupling it was trained on, and training again on it straightens the
paths.
"""

from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.flow import rng
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import Field, VelocityField
from fmcore.flow.pixels import floats, quantise
from fmcore.flow.speed import moved
from fmcore.ode.solvers import SOLVERS, Solver, grid_of, integrate, solve
from fmcore.ode.solvers import solver as named_solver


def draw(
    start: int,
    count: int,
    *,
    shape: tuple[int, ...],
    seed: int,
    purpose: str = "pairs",
    labels: Int64[Tensor, " N"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "count *D"], Int64[Tensor, " count"] | None]:
    """Noise, and for conditional models classes, of the samples `start <= i < start + count`.

    The noise is rounded to the type that it is stored in and returned as float32, so what is integrated is exactly
    what is stored.
    Classes are drawn from the pool `labels`, so they follow the data's frequencies.
    """
    x0 = rng.noise(seed, purpose, start, count, shape).to(_of_noise(dtype)).float()
    if labels is None:
        return x0, None
    return x0, labels[rng.integers(seed, f"{purpose}/label", start, count, len(labels))]


def _of_noise(dtype: torch.dtype) -> torch.dtype:
    """The type that noise is stored in where samples are stored as `dtype`: 8-bit pixels cannot hold noise."""
    return torch.float16 if dtype == torch.uint8 else dtype


def _kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    return quantise(x.float()) if dtype == torch.uint8 else x.to(dtype)


def generate_pairs(
    field: Field,
    count: int,
    *,
    shape: tuple[int, ...],
    seed: int,
    grid: Float[Tensor, " knots"] | int,
    solver: Solver | str,
    batch: int,
    labels: Int64[Tensor, " N"] | None = None,
    start: int = 0,
    purpose: str = "pairs",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Iterator[Pairs]:
    """Yields the pairs `start <= i < count` in batches, on the CPU, as `dtype`; uint8 stores samples as pixels.

    Sample i is always computed in batch i // batch, with the same neighbours; the last batch is padded. Kernels
    differ in the last bits between batch sizes, so this makes the pairs independent of shards and restarts.

    Main arguments:
        field: the teacher.
        count: pairs in all.
        shape: of one sample.
        grid, solver: how to integrate, as for `integrate`; `grid` from 0 to 1.
        batch: samples integrated together; part of what defines the pairs.

    Other arguments:
        labels: the pool that classes are drawn from, for conditional fields.
        start: first sample wanted; a multiple of `batch`.

    Raises:
        ValueError: if `start` is not a multiple of `batch`, or the solver is stochastic: its samples would not be
            a function of the noise.
        FloatingPointError: at a sample that is not finite, named by its index.
    """
    method, times = named_solver(solver), grid_of(grid)
    if method.stochastic:
        raise ValueError(f"couplings need a deterministic solver, got {type(method).__name__}")
    if start % batch:
        raise ValueError(f"start (={start}) must be a multiple of batch (={batch})")
    place = torch.device(device)

    def begun(first: int) -> _Begun:
        x0, label = draw(first, batch, shape=shape, seed=seed, purpose=purpose, labels=labels, dtype=dtype)
        on_device = None if label is None else moved(label, place)
        x1, done = _to_host(solve(field, moved(x0, place), times, method, on_device).to(_of_noise(dtype)))
        keep = min(batch, count - first)
        pairs = Pairs(x0[:keep].to(_of_noise(dtype)), x1[:keep], None if label is None else label[:keep])
        return first, pairs, done

    # A GPU begins the next batch before the host looks at this one.
    waiting: deque[_Begun] = deque()
    for first in range(start, count, batch):
        waiting.append(begun(first))
        if len(waiting) > (place.type == "cuda"):
            yield _finished(*waiting.popleft(), dtype)
    for rest in waiting:
        yield _finished(*rest, dtype)


_Begun = tuple[int, Pairs, "torch.Event | None"]  # index of its first sample, the pairs, their arrival on the host


def _finished(first: int, pairs: Pairs, done: torch.Event | None, dtype: torch.dtype) -> Pairs:
    """Waits for a batch, checks it, and converts it to what is stored."""
    if done is not None:
        done.synchronize()
    _check_finite(pairs.x1, first)
    return pairs._replace(x1=_kept(pairs.x1, dtype))


def _to_host(x: Tensor) -> tuple[Tensor, torch.Event | None]:
    """The tensor on the host and, if it is still being copied, the event that ends the copy."""
    if x.device.type == "cpu":
        return x, None
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    done = torch.Event(x.device.type)
    done.record()
    return there, done


def invert_data(
    field: VelocityField,
    x1: Tensor,
    *,
    grid: Float[Tensor, " knots"],
    solver: Solver,
    batch: int,
    label: Int64[Tensor, " N"] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Iterator[Pairs]:
    """Yields pairs of real data x_1 (N, *D) and the noise x_0 that the field's ODE, run backwards, takes it to.

    Such pairs keep reflow at the data, from which a model's samples drift (Lee et al., arXiv:2405.20320, section
    4.3; Seong et al., arXiv:2510.25229). `grid` runs from 0 to 1, as in sampling.

    Raises:
        ValueError: if the grid does not rise.
        FloatingPointError: at a sample that is not finite, named by its index.
    """
    if not grid[0] < grid[-1]:
        raise ValueError(f"grid must rise from noise to data, got {float(grid[0])} to {float(grid[-1])}")
    place = torch.device(device)
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        data = floats(_kept(floats(x1[rows]), dtype))  # what is stored is exactly what is integrated
        part = None if label is None else label[rows]
        on_device = None if part is None else moved(part, place)
        x0 = solve(field, moved(data, place), grid.flip(0), solver, on_device).to("cpu", _of_noise(dtype))
        _check_finite(x0, first)
        yield Pairs(x0, _kept(data.cpu(), dtype), None if part is None else part.cpu())


def reconstruction_error(
    field: VelocityField,
    x1: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"],
    solver: Solver,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Squared distance, mean over dimensions, between x_1 and its reconstruction in one step.

    x_1 is carried back to noise over the whole grid (which rises from 0 to 1), then to data in one Euler step. On
    the couplings a flow was trained on, the error says how bent the flow is. By how much it is larger on real data
    says how far the flow has drifted from them (Seong et al., arXiv:2510.25229).
    """
    x0 = integrate(field, x1, grid.flip(0), solver, label)
    once = integrate(field, x0, grid[[0, -1]], SOLVERS["euler"], label)
    return (once - x1).flatten(1).square().mean(1)


def _check_finite(x: Tensor, first: int) -> None:
    bad = (~torch.isfinite(x).flatten(1).all(1)).nonzero()
    if len(bad):
        raise FloatingPointError(f"sample {first + int(bad[0])} is not finite: the teacher diverged there")
