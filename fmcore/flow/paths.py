"""Probability paths: how noise x_0 and data x_1 are joined, and what a network on a path may predict.

Every path here is affine and Gaussian: x_t = a(t) x_1 + s(t) x_0 with velocity u_t = a'(t) x_1 + s'(t) x_0, the
conditional paths of Lipman et al., "Flow Matching for Generative Modeling" (arXiv:2210.02747), section 4, written
in terms of the pair they connect. Time runs opposite to a diffusion model's: noise is at t = 0, data at t = 1.

A path is a frozen value. Calling it with times gives its coefficients. `time_at` gives the time of a half log
signal-to-noise ratio log(a / s), as a function of which all paths are the same flow up to scale (Kingma et al.,
arXiv:2107.00630). `span` is the range of times that a network is trained at. On a `normalised` path a network is
given points, and gives velocities, of unit scale.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import log, pi
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Prediction = Literal["velocity", "noise", "data", "score", "v"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
LARGEST_SNR = 20.0  # |log(a / s)| beyond which float32 cannot tell a time from 0 or 1


class Coefficients(NamedTuple):
    """x_t = a x_1 + s x_0 and u_t = da x_1 + ds x_0 at some times; four tensors of one shape."""

    a: Tensor
    s: Tensor
    da: Tensor
    ds: Tensor


@dataclass(frozen=True)
class Linear:
    """a = t, s = 1 - (1 - sigma_min) t: conditional OT (Lipman et al., eqs. 20-23), straight for each pair.

    With sigma_min = 0 it is the interpolation of Liu et al. (arXiv:2209.03003), eq. 1.
    """

    sigma_min: float = 0.0
    name: Literal["linear"] = "linear"
    span: ClassVar[tuple[float, float]] = (0.0, 1.0)
    normalised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"linear needs 0 <= sigma_min < 1, got {self.sigma_min}")

    def __call__(self, t: Tensor) -> Coefficients:
        slope, one = 1 - self.sigma_min, torch.ones_like(t)
        return Coefficients(t, 1 - slope * t, one, -slope * one)

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        return 1 / (torch.exp(-half_log_snr) + 1 - self.sigma_min)


@dataclass(frozen=True)
class Cosine:
    """a = sin(pi t / 2), s = cos(pi t / 2), so a^2 + s^2 = 1 (arXiv:2209.15571, eq. 2.9)."""

    name: Literal["cosine"] = "cosine"
    span: ClassVar[tuple[float, float]] = (0.0, 1.0)
    normalised: ClassVar[bool] = False

    def __call__(self, t: Tensor) -> Coefficients:
        sin, cos = torch.sin(pi / 2 * t), torch.sin(pi / 2 * (1 - t))  # exactly 0 at the ends
        return Coefficients(sin, cos, pi / 2 * cos, -pi / 2 * sin)

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(half_log_snr)) * (2 / pi)


@dataclass(frozen=True)
class Polynomial:
    """a = t^power, s = 1 - t^power: the straight segment, travelled ever faster for power > 1.

    For power > 1 the velocity is 0 at t = 0, and so says nothing of the data. A network is therefore trained and
    evaluated from a = 0.01 on only, which is about where VP and VE begin.
    """

    power: float = 2.0
    name: Literal["polynomial"] = "polynomial"
    normalised: ClassVar[bool] = False

    @property
    def span(self) -> tuple[float, float]:
        return (0.01 ** (1 / self.power), 1.0)

    def __post_init__(self) -> None:
        if self.power < 1:
            raise ValueError(f"polynomial needs power >= 1, got {self.power}")

    def __call__(self, t: Tensor) -> Coefficients:
        a, da = t**self.power, self.power * t ** (self.power - 1)
        return Coefficients(a, 1 - a, da, -da)

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(half_log_snr) ** (1 / self.power)


@dataclass(frozen=True)
class VP:
    """a = exp(-T / 2), s = sqrt(1 - exp(-T)), T the integral of beta from 0 to 1 - t: variance preserving.

    Lipman et al., eqs. 18-19; Song et al. (arXiv:2011.13456), eq. 33, where beta rises linearly. s' is infinite
    at the data, so training stops 1e-5 before it, as both papers do.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    name: Literal["vp"] = "vp"
    span: ClassVar[tuple[float, float]] = (0.0, 1 - 1e-5)
    normalised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"vp needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def __call__(self, t: Tensor) -> Coefficients:
        left, rise = 1 - t, self.beta_max - self.beta_min
        beta = self.beta_min + left * rise
        total = left * (self.beta_min + left * rise / 2)
        a, s = torch.exp(-total / 2), (-torch.expm1(-total)).sqrt()
        return Coefficients(a, s, beta * a / 2, -beta * a**2 / (2 * s))

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        total = torch.nn.functional.softplus(-2 * half_log_snr)
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * total).sqrt()
        return 1 - 2 * total / (self.beta_min + root)


@dataclass(frozen=True)
class VE:
    """a = 1, s = sigma_max (sigma_min / sigma_max)^t: variance exploding, from noise far wider than the data.

    Lipman et al., eqs. 16-17, with the geometric scale of Song et al. (arXiv:2011.13456), section 3.4. Its points
    and velocities span orders of magnitude, so networks see them `normalised`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    name: Literal["ve"] = "ve"
    span: ClassVar[tuple[float, float]] = (0.0, 1.0)
    normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"ve needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def __call__(self, t: Tensor) -> Coefficients:
        rate = log(self.sigma_min / self.sigma_max)
        s = self.sigma_max * torch.exp(rate * t)
        return Coefficients(torch.ones_like(t), s, torch.zeros_like(t), rate * s)

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        return (half_log_snr + log(self.sigma_max)) / log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Discrete:
    """A diffusion model's own table of a^2 (`alphas_cumprod`, falling), with a^2 + s^2 = 1.

    Step i of N lies at t = 1 - i / (N - 1); between steps log(a / s) is interpolated linearly.
    """

    alphas_cumprod: tuple[float, ...]
    name: Literal["discrete"] = "discrete"
    span: ClassVar[tuple[float, float]] = (0.0, 1.0)
    normalised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        falling = all(a > b for a, b in pairwise(table))
        if len(table) < 2 or not falling or not 0 < table[-1] <= table[0] < 1:
            raise ValueError("discrete needs at least two alphas_cumprod that fall strictly inside (0, 1)")

    def __call__(self, t: Tensor) -> Coefficients:
        knots = log_snr_knots(self.alphas_cumprod, t.device)
        place = t.double() * (len(knots) - 1)
        i = place.floor().long().clamp(0, len(knots) - 2)
        slope = knots[i + 1] - knots[i]
        level = (knots[i] + (place - i) * slope).to(t.dtype)
        rate = (slope * (len(knots) - 1)).to(t.dtype)
        a, s = torch.sigmoid(2 * level).sqrt(), torch.sigmoid(-2 * level).sqrt()
        return Coefficients(a, s, a * s**2 * rate, -s * a**2 * rate)

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        knots = log_snr_knots(self.alphas_cumprod, half_log_snr.device)
        level = half_log_snr.double()
        i = (torch.searchsorted(knots, level.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        place = i + (level - knots[i]) / (knots[i + 1] - knots[i])
        return (place / (len(knots) - 1)).to(half_log_snr.dtype)


@lru_cache(maxsize=8)
def log_snr_knots(alphas_cumprod: tuple[float, ...], device: torch.device) -> Tensor:
    """Half the logarithm of the signal-to-noise ratio at each step of a discrete schedule, from noise to data."""
    return torch.logit(torch.tensor(alphas_cumprod[::-1], dtype=torch.float64)).to(device) / 2


ContinuousPath = Linear | Cosine | Polynomial | VP | VE
ProbPath = ContinuousPath | Discrete
CONTINUOUS_PATHS: dict[str, type[ContinuousPath]] = {path.name: path for path in get_args(ContinuousPath)}
LINEAR = Linear()
PATHS: dict[str, type[ProbPath]] = {path.name: path for path in get_args(ProbPath)}


def expand(t: Shaped[Tensor, " B"], x: Float[Tensor, "B *D"]) -> Tensor:
    """Views t of shape (B,) so that it broadcasts against x of shape (B, *D)."""
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def coefficients(path: ProbPath, t: Float[Tensor, " B"], x: Float[Tensor, "B *D"]) -> Coefficients:
    """The path's coefficients at t, shaped to multiply x."""
    return Coefficients(*(expand(value, x) for value in path(t)))


def interpolate(
    path: ProbPath, x0: Float[Tensor, "B *D"], x1: Float[Tensor, "B *D"], t: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B *D"], Float[Tensor, "B *D"]]:
    """(x_t, u_t): the point of each pair at its time and its velocity, both of x's shape.

    Example:
        >>> x_t, u_t = interpolate(Linear(), torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.25]))
        >>> x_t.item(), u_t.item()
        (4.0, 8.0)
    """
    a, s, da, ds = coefficients(path, t, x0)
    return a * x1 + s * x0, da * x1 + ds * x0


def half_log_snr(path: ProbPath, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log(a / s), clamped to +-`LARGEST_SNR`; it rises from noise to data on every path."""
    a, s, _, _ = path(t)
    return (a.log() - s.log()).clamp(-LARGEST_SNR, LARGEST_SNR)


def ends(kind: Prediction, c: Coefficients, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(x_0, x_1), the expected noise and data, from a prediction `value` of `kind` at the point x.

    They solve x = a x_1 + s x_0 together with the prediction's definition: the velocity da x_1 + ds x_0, the noise
    x_0, the data x_1, the score -x_0 / s of the marginal (Song et al., arXiv:2011.13456), or v = a x_0 - s x_1
    (Salimans and Ho, arXiv:2202.00512, appendix D). The result is not finite where there is no solution: for noise
    at a = 0, for data at s = 0.
    """
    a, s, da, ds = c
    if kind == "velocity":
        turn = a * ds - s * da
        return (a * value - da * x) / turn, (ds * x - s * value) / turn
    if kind == "data":
        return (x - a * value) / s, value
    if kind == "v":
        norm = a**2 + s**2
        return (s * x + a * value) / norm, (a * x - s * value) / norm
    x0 = value if kind == "noise" else -s * value
    return x0, (x - s * x0) / a


def prediction(kind: Prediction, c: Coefficients, x0: Tensor, x1: Tensor) -> Tensor:
    """The prediction of `kind` that expects the noise x_0 and the data x_1: the inverse of `ends`."""
    a, s, da, ds = c
    if kind == "velocity":
        return da * x1 + ds * x0
    if kind == "v":
        return a * x0 - s * x1
    return {"noise": x0, "data": x1, "score": -x0 / s}[kind]


def convert(
    path: ProbPath,
    x: Float[Tensor, "B *D"],
    t: Float[Tensor, " B"],
    value: Float[Tensor, "B *D"],
    *,
    source: Prediction,
    target: Prediction,
) -> Float[Tensor, "B *D"]:
    """Converts a prediction `value` of the kind `source`, at (x, t) on the path, to one of the kind `target`.

    Example, the score of N(0, 1), which every variance preserving path keeps:
        >>> x, t = torch.tensor([[2.0]]), torch.tensor([0.5])
        >>> convert(Cosine(), x, t, torch.zeros(1, 1), source="velocity", target="score").item()
        -2.0
    """
    if source == target:  # also where there is no way through x_0 and x_1
        return value
    c = coefficients(path, t, x)
    return prediction(target, c, *ends(source, c, x, value))
