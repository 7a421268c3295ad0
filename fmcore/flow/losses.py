"""Distances between a predicted and a target velocity, and the flow-matching loss.

A distance maps a predicted velocity v, its target u_t, the point x_t where both are taken, all (B, *D), and the
time t (B,) to one number per sample; the caller takes the mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import VelocityField
from fmcore.flow.paths import Prediction, ProbPath, coefficients, interpolate, prediction
from fmcore.flow.perceptual import Perceptual, pseudo_huber


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

# Weights of the loss over time. The squared distance needs none: on the linear path it already weighs errors in
# the data and in the noise alike.
Weighting = Callable[[Tensor], Tensor]
WEIGHTINGS: dict[str, Weighting] = {
    "none": torch.ones_like,
    "data": lambda t: t,
    "noise": lambda t: 1 - t,
    "inverse_noise": lambda t: 1 / (1 - t).clamp(min=0.05),
}


class Compared(NamedTuple):
    """A field's velocity v and its target u_t (or other predictions), at x_t and the path's own time t."""

    v: Tensor
    u_t: Tensor
    x_t: Tensor
    t: Tensor


def compared(
    field: VelocityField,
    path: ProbPath,
    pairs: Pairs,
    t: Float[Tensor, " B"],
    predicts: Prediction = "velocity",
) -> Compared:
    """The velocities that the flow-matching loss compares, or what else the field `predicts`.

    Times in [0, 1] are mapped linearly to `path.span`. On a `normalised` path both velocities are divided by
    sqrt(a'^2 + s'^2), so that all noise levels weigh alike, as in noise prediction.
    """
    low, high = path.span
    t = low + (high - low) * t
    x_t, u_t = interpolate(path, pairs.x0, pairs.x1, t)
    v = field(x_t, t, pairs.label)
    if predicts != "velocity":
        return Compared(v, prediction(predicts, coefficients(path, t, x_t), pairs.x0, pairs.x1), x_t, t)
    if path.normalised:
        _, _, da, ds = coefficients(path, t, x_t)
        unit = (da**2 + ds**2).rsqrt()
        v, u_t = unit * v, unit * u_t
    return Compared(v, u_t, x_t, t)


def flow_matching_loss(
    field: VelocityField,
    path: ProbPath,
    pairs: Pairs,
    t: Float[Tensor, " B"],
    distance: Distance,
    weight: Weighting = torch.ones_like,
    predicts: Prediction = "velocity",
) -> Float[Tensor, " B"]:
    """weight(t) distance(v(x_t, t), u_t) for each pair: the conditional flow-matching loss.

    A field that `predicts` the noise is trained as a diffusion model is (Ho et al., arXiv:2006.11239, eq. 14).

    Lipman et al., arXiv:2210.02747, eq. 9; on pairs that a flow induced it is the reflow objective of
    Liu et al., arXiv:2209.03003, eq. 1. `compared` says what becomes of t and of the velocities.
    """
    found = compared(field, path, pairs, t, predicts)
    return weight(found.t) * distance(*found)
