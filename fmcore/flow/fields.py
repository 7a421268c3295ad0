"""Velocity fields: of a network of any convention, guided, or counting their evaluations.

A velocity field maps x (B, *D), t (B,) and a class (B,) or None to dx/dt (B, *D), with t = 0 noise and
t = 1 data. Networks of another convention are converted here.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, nn

from fmcore.flow.paths import LINEAR, Prediction, ProbPath, coefficients, ends, expand, half_log_snr, prediction

VelocityField = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Field = VelocityField | Callable[[Tensor, Tensor], Tensor]  # of (x, t, label), or of (x, t)
PRECISIONS = ("auto", "fp32", "bf16")
# To turn predicted noise into data one divides by a, and data into noise by s. Beyond |log(a / s)| = 10 that loses
# too much in float32.
DIVIDED, DIVIDED_SNR = ("noise", "score", "data"), 10.0


@dataclass(frozen=True)
class Convention:
    """What a network's output means: what it `predicts` on which path. `clip` cuts predicted data at +-clip."""

    path: ProbPath = LINEAR
    predicts: Prediction = "velocity"
    clip: float | None = None


OURS = Convention()


def as_field(field: Field | nn.Module) -> VelocityField:
    """The field, or network, as one of (x, t, label); one of (x, t) takes no labels.

    Raises:
        TypeError: for what cannot be called so, or whose arguments are called t and x in this order.
    """
    if not callable(field):
        raise TypeError(f"expected a field of (x, t) or (x, t, label), got {type(field).__name__}")
    if isinstance(field, nn.Module) and getattr(field, "has_second_time", False):
        return _map_of(field, next(field.parameters()).device, None)
    inner = getattr(field, "_orig_mod", field)  # of a network that torch.compile has wrapped
    kind: Any = type(inner)
    names = _of_class(kind) if isinstance(inner, nn.Module) else _arguments(inner, 0)
    if names is None or len(names) >= 3:
        return cast(VelocityField, field)
    if len(names) < 2:
        raise TypeError(f"expected a field of (x, t) or (x, t, label), got one of ({', '.join(names)})")

    def without_label(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if label is not None:
            raise ValueError("labels were given to a field of (x, t), which takes none")
        return cast(Callable[[Tensor, Tensor], Tensor], field)(x, t)

    return without_label


@lru_cache(maxsize=64)  # a network is asked at every step; a function would be kept alive, with all it refers to
def _of_class(kind: type[nn.Module]) -> tuple[str, ...] | None:
    return _arguments(kind.forward, 1)


def _arguments(function: Callable[..., Any], skipped: int) -> tuple[str, ...] | None:
    """The names of what a function takes by position, `skipped` left out; None where that is open or unknown."""
    try:
        found = list(inspect.signature(function).parameters.values())[skipped:]
    except (TypeError, ValueError):  # built-in
        return None
    if any(one.kind is one.VAR_POSITIONAL for one in found):
        return None
    names = tuple(one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
    if names[1:2] and names[1].lower() == "x" and names[0].lower() in ("t", "time"):
        raise TypeError(f"expected a field of (x, t, ...), x first, got one of ({', '.join(names)})")
    return names


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype networks compute in, None for plain float32.

    `auto` takes bfloat16 where the processor has instructions for it; elsewhere it is emulated, and slower.
    The choice depends on the kind of machine alone, never on a timing, so a resumed run makes the same one.
    """
    check_precision(precision)
    if precision == "bf16" or (precision == "auto" and has_bfloat16(device)):
        return torch.bfloat16
    return None


def check_precision(precision: str) -> None:
    """A ValueError for an unknown one."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def network_field(
    network: nn.Module, precision: str, convention: Convention = OURS, target: ProbPath = LINEAR
) -> VelocityField:
    """The velocity field on the path `target` that a network of `convention` predicts.

    Autocast acts inside the network only; the velocity has x's dtype. bfloat16 cannot tell times near 1 apart (its
    steps there are 0.004), so t enters the network, and is embedded, as float32.
    """
    device = next(network.parameters()).device
    dtype, call = autocast_dtype(precision, device), as_field(network)
    if getattr(network, "has_second_time", False):
        if convention != Convention(target):
            raise ValueError(f"a flow map predicts velocities on the path it is used on, got {convention}")
        return _map_of(network, device, dtype)

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            v: Tensor = call(x.float(), t.float(), label)
        return v.to(x.dtype)

    def normalised(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        a, s, da, ds = coefficients(convention.path, t, x)
        return field(x * (a**2 + s**2).rsqrt(), t, label) * (da**2 + ds**2).sqrt()

    scaled = convention.path.normalised and convention.predicts == "velocity"
    return reparametrised(normalised if scaled else field, convention, target)


@dataclass(frozen=True)
class MapField:
    """A flow map as a velocity field v(x, t) = u(x, t, t).

    Main arguments:
        mean: u(x, t, s) of x, t, s and the class.
        exact: the same in float32, for its derivatives.
    """

    mean: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.mean(x, t, t, label)


def _map_of(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> MapField:
    def mean(x: Tensor, t: Tensor, s: Tensor, label: Tensor | None, dtype: torch.dtype | None = dtype) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            u: Tensor = network(x.float(), t.float(), label, s.float())
        return u.to(x.dtype)

    return MapField(mean, partial(mean, dtype=None))


def velocity_at(field: VelocityField, x: Tensor, t: float, label: Tensor | None) -> Tensor:
    """The velocity where all points are at one time."""
    return field(x, x.new_full(x.shape[:1], t), label)  # a shape, so that torch.export keeps the batch free


def mean_velocity(field: VelocityField, x: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
    """The mean velocity from t to s as far as the field knows it: a flow map's u(x, t, s), else v(x, t)."""
    return field.mean(x, t, s, label) if isinstance(field, MapField | Counted) else field(x, t, label)


def reparametrised(field: VelocityField, source: Convention, target: ProbPath = LINEAR) -> VelocityField:
    """The velocity field on the path `target`, from a field that follows `source`.

    All affine Gaussian paths are one flow at different speeds and scales. A point of the target path at t is a
    rescaled point of the source path, at the time of equal a / s (Karras et al., arXiv:2206.00364, section 2;
    Pokle et al., arXiv:2310.04432, section 3). An a / s outside the source's range is replaced by the range's
    nearest end.
    """
    if source == Convention(target):
        return field
    path = source.path
    low, high = half_log_snr(path, torch.tensor(path.span, dtype=torch.float64)).tolist()
    if source.predicts in DIVIDED:
        low, high = max(low, -DIVIDED_SNR), min(high, DIVIDED_SNR)

    def converted(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        # An adaptive solver evaluates a little outside [0, 1].
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
        # Reading from a GPU waits for its queue: done before the network is queued, and never if always guided.
        twice = guidance.scale != 1 and (everywhere or bool(inside.any()))
        v = field(x, t, label)
        if not twice:
            return v
        v_null = field(x, t, torch.full_like(label, null_label))
        return torch.where(expand(inside, x), v_null + guidance.scale * (v - v_null), v)

    return guided_field


class Counted:
    """A field that counts its evaluations: `nfe` is the number of calls so far."""

    def __init__(self, field: VelocityField) -> None:
        self.field = field
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.nfe += 1
        return self.field(x, t, label)

    def mean(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """See `mean_velocity`."""
        self.nfe += 1
        return mean_velocity(self.field, x, t, s, label)
