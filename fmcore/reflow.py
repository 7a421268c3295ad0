"""The coupling a field induces: noise x_0 and the sample x_1 that the ODE carries it to.

Liu et al., "Flow Straight and Fast" (arXiv:2209.03003), section 2.2: the pair (Z_0, Z_1) of a rectified flow
has no larger transport cost than the coupling it was trained on, and training again on it straightens the
paths.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore import rng
from fmcore.couplings import Pairs
from fmcore.fields import VelocityField
from fmcore.solvers import Tableau, integrate


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

    The noise is rounded to `dtype` and returned as float32: what is stored is exactly what was integrated.
    Classes are drawn from the pool `labels`, so they follow the data's frequencies.
    """
    x0 = rng.noise(seed, purpose, start, count, shape).to(dtype).float()
    if labels is None:
        return x0, None
    return x0, labels[rng.integers(seed, f"{purpose}/label", start, count, len(labels))]


def generate_pairs(
    field: VelocityField,
    count: int,
    *,
    shape: tuple[int, ...],
    seed: int,
    grid: Float[Tensor, " knots"],
    tableau: Tableau,
    batch: int,
    labels: Int64[Tensor, " N"] | None = None,
    start: int = 0,
    purpose: str = "pairs",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Iterator[Pairs]:
    """Yields the pairs `start <= i < count` in batches, on the CPU, as `dtype`.

    Sample i is always computed in batch i // batch among the same neighbours, the last batch padded: kernels
    differ in the last bits between batch sizes, so this makes the pairs independent of shards and restarts.

    Main arguments:
        field: the teacher.
        count: pairs in all.
        shape: of one sample.
        grid, tableau: the solver's; `grid` from 0 to 1.
        batch: samples integrated together; part of what defines the pairs.

    Other arguments:
        labels: the pool classes are drawn from, for conditional fields.
        start: first sample wanted; a multiple of `batch`.

    Raises:
        ValueError: if `start` is not a multiple of `batch`.
        FloatingPointError: at a sample that is not finite, named by its index.
    """
    if start % batch:
        raise ValueError(f"start (={start}) must be a multiple of batch (={batch})")
    for first in range(start, count, batch):
        x0, label = draw(first, batch, shape=shape, seed=seed, purpose=purpose, labels=labels, dtype=dtype)
        on_device = None if label is None else label.to(device)
        x1 = integrate(field, x0.to(device), grid, tableau, on_device).to("cpu", dtype)
        bad = (~torch.isfinite(x1).flatten(1).all(1)).nonzero()
        if len(bad):
            raise FloatingPointError(f"sample {first + int(bad[0])} is not finite: the teacher diverged there")
        keep = min(batch, count - first)
        yield Pairs(x0[:keep].to(dtype), x1[:keep], None if label is None else label[:keep])
