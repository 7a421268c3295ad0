"""Velocity fields made from things: a network, or another field that is being counted.

A velocity field maps x (B, *D), t (B,) and a class (B,) or None to dx/dt (B, *D), with t = 0 noise and
t = 1 data. Whatever follows another convention is converted here.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

VelocityField = Callable[[Tensor, Tensor, Tensor | None], Tensor]
PRECISIONS = ("auto", "fp32", "bf16")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype networks compute in, None for plain float32.

    `auto` takes bfloat16 where the processor has instructions for it: elsewhere it is emulated, and slower.
    The choice depends on the machine's kind alone, never on a timing, so that it repeats.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        pays = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and pays) else None


def network_field(network: nn.Module, precision: str) -> VelocityField:
    """The field of a network: autocast inside it only; x, t and the velocity stay in x's dtype.

    Times near 1 lose all meaning in bfloat16 (steps of 0.004), so t enters the network as float32 and its
    embedding is computed there.
    """
    device = next(network.parameters()).device
    dtype = autocast_dtype(precision, device)

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            v: Tensor = network(x.float(), t.float(), label)
        return v.to(x.dtype)

    return field


class Counted:
    """A field that counts its evaluations, for honest NFE: `nfe` is the number of calls since the start."""

    def __init__(self, field: VelocityField) -> None:
        self.field = field
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.nfe += 1
        return self.field(x, t, label)
