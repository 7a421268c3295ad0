"""Distances between a predicted and a target velocity, and the flow-matching loss.

A distance maps a predicted velocity v, its target u_t, the point x_t they start from, all (B, *D), and the time t
(B,) to one number per sample; the caller reduces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.couplings import Pairs
from fmcore.fields import VelocityField
from fmcore.paths import ProbPath, coefficients, expand, interpolate
from fmcore.perceptual import Perceptual, pseudo_huber


@dataclass(frozen=True)
class Squared:
    """|v - u_t|^2 / D, the mean over dimensions."""

    name: Literal["squared"] = "squared"

    def __call__(self, v: Tensor, u_t: Tensor, x_t: Tensor, t: Tensor) -> Float[Tensor, " B"]:
        return (v - u_t).flatten(1).square().mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """(sqrt(|v - u_t|^2 + c^2) - c) / D with c = `scale` * D: quadratic near 0, linear far away.

    Per *sample*, not per element (Lee et al., arXiv:2405.20320, section 4.2; scale 0.00054 is theirs, after
    Song and Dhariwal, arXiv:2310.14189, eq. 8).
    """

    scale: float = 0.00054
    name: Literal["pseudo_huber"] = "pseudo_huber"

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"pseudo_huber needs scale > 0, got {self.scale}")

    def __call__(self, v: Tensor, u_t: Tensor, x_t: Tensor, t: Tensor) -> Float[Tensor, " B"]:
        return pseudo_huber(v, u_t, self.scale)


Distance = Squared | PseudoHuber | Perceptual
DISTANCES = {distance.name: distance for distance in get_args(Distance)}

# Weights of the loss over time. A square needs none: on the linear path it already weighs data and noise alike.
Weighting = Callable[[Tensor], Tensor]
WEIGHTINGS: dict[str, Weighting] = {
    "none": torch.ones_like,
    "data": lambda t: t,
    "noise": lambda t: 1 - t,
    "inverse_noise": lambda t: 1 / (1 - t).clamp(min=0.05),
}


@dataclass(frozen=True)
class Matching:
    """How strongly, and from which share of the training on, a student's samples are drawn to the data's.

    `weight` multiplies their energy distance per dimension, which is added to the loss on pairs.
    """

    weight: float
    start: float

    def __post_init__(self) -> None:
        if self.weight <= 0 or not 0 <= self.start < 1:
            raise ValueError(f"matching needs weight > 0 and start in [0, 1), got {self.weight} and {self.start}")


def energy(
    x: Float[Tensor, "B *D"],
    y: Float[Tensor, "N *D"],
    x_label: Int64[Tensor, " B"] | None = None,
    y_label: Int64[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """The energy distance over D, (2 E|x - y| - E|x - x'| - E|y - y'|) / D, unbiased, of two samples or more.

    It is 0 only where x is distributed as y (Szekely and Rizzo, "Energy statistics", 2013; as the loss of a
    generator: Bellemare et al., arXiv:1705.10743). With labels it is that of samples and labels together: for two
    of different classes |x - y|^2 is larger by D.
    """
    a, b = x.flatten(1), y.flatten(1)

    def apart(u: Tensor, v: Tensor, u_label: Tensor | None, v_label: Tensor | None) -> Tensor:
        squares = (
            torch.cdist(u, v).square() + 1e-8
        )  # the root's slope is infinite at 0, where a sample meets itself
        if u_label is not None and v_label is not None:
            squares = squares + u.shape[1] * (u_label[:, None] != v_label)
        return squares.sqrt()

    def spread(u: Tensor, label: Tensor | None) -> Tensor:
        lengths = apart(u, u, label, label)
        return (lengths.sum() - lengths.diagonal().sum()) / (len(u) * (len(u) - 1))

    to_data = apart(a, b, x_label, y_label).mean()
    labels = (x_label, y_label) if x_label is not None and y_label is not None else (None, None)
    return (2 * to_data - spread(a, labels[0]) - spread(b, labels[1])) / a.shape[1]


def flow_matching_loss(
    field: VelocityField,
    path: ProbPath,
    pairs: Pairs,
    t: Float[Tensor, " B"],
    distance: Distance,
    weight: Weighting = torch.ones_like,
    *,
    real: Pairs | None = None,
    match: float = 0.0,
) -> Float[Tensor, " B"]:
    """weight(t) distance(v(x_t, t), u_t) for each pair: the conditional flow-matching loss.

    Lipman et al., arXiv:2210.02747, eq. 9; on pairs that a flow induced it is the reflow objective of
    Liu et al., arXiv:2209.03003, eq. 1. Times in [0, 1] are mapped to those the path is trained at, and on a
    `normalised` path velocities are compared at unit size, where noise prediction weighs all scales alike.

    With `real` data, `match` times the energy distance between it and the ends x_t + (1 - t) v is added, which on
    the linear path are what one step to the end makes: a one-step student's samples.
    """
    low, high = path.span
    t = low + (high - low) * t
    x_t, u_t = interpolate(path, pairs.x0, pairs.x1, t)
    v = field(x_t, t, pairs.label)
    if path.normalised:
        _, _, da, ds = coefficients(path, t, x_t)
        unit = (da**2 + ds**2).rsqrt()
        v, u_t = unit * v, unit * u_t
    loss = weight(t) * distance(v, u_t, x_t, t)
    if real is None:
        return loss
    end = x_t + expand(1 - t, x_t) * v
    return loss + match * energy(end, real.x1, pairs.label, real.label)
