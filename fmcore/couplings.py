"""Couplings: where pairs (x_0, x_1) come from.

A coupling has a length and is called with indices and a generator. `Independent` pairs each data point with
fresh noise; `Stored` returns the pairs that an earlier flow induced. Reflow is the same training on another
coupling (Liu et al., arXiv:2209.03003).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from fmcore.pixels import dequantise


class Pairs(NamedTuple):
    """Noise x0 (B, *D), data x1 (B, *D) and, for conditional models, the class of each pair (B,)."""

    x0: Tensor
    x1: Tensor
    label: Tensor | None = None


@runtime_checkable
class Coupling(Protocol):
    """What training needs of a coupling."""

    def __len__(self) -> int: ...

    def __call__(self, index: Int64[Tensor, " B"], generator: Generator) -> Pairs: ...


@dataclass(frozen=True)
class Independent:
    """Each data point with noise of its own, drawn anew at every call: q(x_0, x_1) = N(x_0) q(x_1).

    Data may be kept as 8-bit pixels, a quarter of the memory; it is trained on as float32 either way.
    """

    x1: Float[Tensor, "N *D"] | UInt8[Tensor, "N *D"]
    label: Int64[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return len(self.x1)

    def __call__(self, index: Int64[Tensor, " B"], generator: Generator) -> Pairs:
        x1 = self.x1[index]
        if x1.dtype == torch.uint8:
            x1 = dequantise(x1)
        x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
        return Pairs(x0, x1, None if self.label is None else self.label[index])


@dataclass(frozen=True)
class Stored:
    """Pairs made beforehand and held in memory; `fmcore.store.open_pairs` reads them from disk."""

    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs.x0)

    def __call__(self, index: Int64[Tensor, " B"], generator: Generator) -> Pairs:
        x0, x1, label = self.pairs
        # Pairs may be kept in half precision; the path and the loss are computed in float32.
        return Pairs(x0[index].float(), x1[index].float(), None if label is None else label[index])
