"""Velocity fields made from things: a network of any convention, guidance, a field that is being counted.

A velocity field maps x (B, *D), t (B,) and a class (B,) or None to dx/dt (B, *D), with t = 0 noise and
t = 1 data. Whatever follows another convention is converted here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from fmcore.flow.paths import LINEAR, Prediction, ProbPath, coefficients, ends, expand, half_log_snr, prediction

VelocityField = Callable[[Tensor, Tensor, Tensor | None], Tensor]
PRECISIONS = ("auto", "fp32", "bf16")
# Noise becomes data by a division by a, data noise by one by s: beyond |log(a / s)| = 10 float32 loses too much.
DIVIDED, DIVIDED_SNR = ("noise", "score", "data"), 10.0


@dataclass(frozen=True)
class Convention:
    """What a network's output means: a prediction on a path, its data cut at +-`clip` if that is given."""

    path: ProbPath = LINEAR
    predicts: Prediction = "velocity"
    clip: float | None = None


OURS = Convention()


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype networks compute in, None for plain float32.

    `auto` takes bfloat16 where the processor has instructions for it: elsewhere it is emulated, and slower.
    The choice depends on the machine's kind alone, never on a timing, so that it repeats.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if precision == "bf16" or (precision == "auto" and has_bfloat16(device)):
        return torch.bfloat16
    return None


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def network_field(
    network: nn.Module, precision: str, convention: Convention = OURS, target: ProbPath = LINEAR
) -> VelocityField:
    """The velocity on the path `target` of a network that follows `convention`.

    Autocast works inside the network only; x, t and the velocity stay in x's dtype. Times near 1 lose all meaning
    in bfloat16 (steps of 0.004), so t enters the network as float32 and its embedding is computed there.
    """
    device = next(network.parameters()).device
    dtype = autocast_dtype(precision, device)

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            v: Tensor = network(x.float(), t.float(), label)
        return v.to(x.dtype)

    def normalised(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        a, s, da, ds = coefficients(convention.path, t, x)
        return field(x * (a**2 + s**2).rsqrt(), t, label) * (da**2 + ds**2).sqrt()

    scaled = convention.path.normalised and convention.predicts == "velocity"
    return reparametrised(normalised if scaled else field, convention, target)


def reparametrised(field: VelocityField, source: Convention, target: ProbPath = LINEAR) -> VelocityField:
    """The velocity on the path `target` of a field that follows `source`.

    All affine Gaussian paths are one flow with other clocks and scales: a point of the target path at t is the
    source's point at the time of equal a / s, rescaled (Karras et al., arXiv:2206.00364, section 2; Pokle et al.,
    arXiv:2310.04432, section 3). Noise levels outside those the source knows are taken at its nearest.
    """
    if source == Convention(target):
        return field
    path = source.path
    low, high = half_log_snr(path, torch.tensor(path.span, dtype=torch.float64)).tolist()
    if source.predicts in DIVIDED:
        low, high = max(low, -DIVIDED_SNR), min(high, DIVIDED_SNR)

    def converted(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        # An adaptive solver looks a little beyond the ends.
        r = path.time_at(half_log_snr(target, t.double().clamp(0, 1)).clamp(low, high))
        to, at = (
            type(c)(*(value.to(x.dtype) for value in c))
            for c in (coefficients(target, t.double(), x), coefficients(path, r, x))
        )
        point = x * ((at.a**2 + at.s**2) / (to.a**2 + to.s**2)).sqrt()
        x0, x1 = ends(source.predicts, at, point, field(point, r.to(t.dtype), label))
        if source.clip is not None:
            x1 = x1.clamp(-source.clip, source.clip)
            x0 = (point - at.a * x1) / at.s
        return prediction("velocity", to, x0, x1)

    return converted


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: v_null + scale (v_label - v_null) for t in [start, stop], v_label elsewhere.

    Ho and Salimans, arXiv:2207.12598, eq. 6 (their w is scale - 1), for velocities: Zheng et al.,
    arXiv:2311.13443. The interval: Kynkaanniemi et al., arXiv:2404.07724.
    """

    scale: float
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < inf or not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"guidance needs scale >= 0 and 0 <= start < stop <= 1, got {self}")


def guided(field: VelocityField, guidance: Guidance, null_label: int) -> VelocityField:
    """The guided field; it evaluates `field` twice inside the interval, once outside.

    Main arguments:
        field: conditional, trained with `null_label` in place of some labels.
    """

    everywhere = guidance.start <= 0 and guidance.stop >= 1

    def guided_field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if label is None:
            raise ValueError("guidance needs a label for each sample, got none")
        inside = (guidance.start <= t) & (t <= guidance.stop)
        # A GPU is asked before it has the network to evaluate, and not at all if guidance is everywhere.
        twice = guidance.scale != 1 and (everywhere or bool(inside.any()))
        v = field(x, t, label)
        if not twice:
            return v
        v_null = field(x, t, torch.full_like(label, null_label))
        return torch.where(expand(inside, x), v_null + guidance.scale * (v - v_null), v)

    return guided_field


class Counted:
    """A field that counts its evaluations, for honest NFE: `nfe` is the number of calls since the start."""

    def __init__(self, field: VelocityField) -> None:
        self.field = field
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.nfe += 1
        return self.field(x, t, label)
