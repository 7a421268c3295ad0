"""Distances between a predicted and a target velocity, and the flow-matching loss.

A distance maps two tensors of shape (B, *D) to one number per sample; the caller reduces.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from fmcore.couplings import Pairs
from fmcore.fields import VelocityField
from fmcore.paths import ProbPath


@dataclass(frozen=True)
class Squared:
    """|a - b|^2 / D, the mean over dimensions."""

    name: Literal["squared"] = "squared"

    def __call__(self, a: Float[Tensor, "B *D"], b: Float[Tensor, "B *D"]) -> Float[Tensor, " B"]:
        return (a - b).flatten(1).square().mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """(sqrt(|a - b|^2 + c^2) - c) / D with c = `scale` * D: quadratic near 0, linear far away.

    Per *sample*, not per element (Lee et al., arXiv:2405.20320, section 4.2; scale 0.00054 is theirs, after
    Song and Dhariwal, arXiv:2310.14189, eq. 8).
    """

    scale: float = 0.00054
    name: Literal["pseudo_huber"] = "pseudo_huber"

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"pseudo_huber needs scale > 0, got {self.scale}")

    def __call__(self, a: Float[Tensor, "B *D"], b: Float[Tensor, "B *D"]) -> Float[Tensor, " B"]:
        dims = prod(a.shape[1:])
        c = self.scale * dims
        return ((a - b).flatten(1).square().sum(1).add(c * c).sqrt() - c) / dims


Distance = Squared | PseudoHuber
DISTANCES = {distance.name: distance for distance in get_args(Distance)}


def flow_matching_loss(
    field: VelocityField, path: ProbPath, pairs: Pairs, t: Float[Tensor, " B"], distance: Distance
) -> Float[Tensor, " B"]:
    """distance(v(x_t, t), u_t) for each pair: the conditional flow-matching loss.

    Lipman et al., arXiv:2210.02747, eq. 9; on pairs that a flow induced it is the reflow objective of
    Liu et al., arXiv:2209.03003, eq. 1.
    """
    x_t, u_t = path(pairs.x0, pairs.x1, t)
    return distance(field(x_t, t, pairs.label), u_t)
