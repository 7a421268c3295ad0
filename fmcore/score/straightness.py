"""How straight a flow's paths are, and how far its pairs travel."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


def bends(points: Sequence[Float[Tensor, "B *D"]], grid: Float[Tensor, " knots"]) -> Float[Tensor, "steps B"]:
    """|(x_1 - x_0) - v(x_t, t)|^2 on each interval of the grid for each trajectory, mean over dimensions.

    `points` is an Euler trajectory on a grid from 0 to 1, whose differences are the velocities it was made of.
    """
    chord = points[-1] - points[0]
    steps = zip(pairwise(points), grid.diff().tolist(), strict=True)
    return torch.stack([(chord - (b - a) / h).flatten(1).square().mean(1) for (a, b), h in steps])


def straightness(points: Sequence[Float[Tensor, "B *D"]], grid: Float[Tensor, " knots"]) -> Float[Tensor, " B"]:
    """The integral of `bends` over t for each trajectory; 0 is a straight line.

    Few steps give too small a value (docs/scores.md has an example), so compare trajectories of equally many.

    Liu et al., arXiv:2209.03003, eq. 4 (they sum over dimensions).
    """
    bent = bends(points, grid)
    return grid.diff().to(bent) @ bent


def transport_cost(x0: Float[Tensor, "B *D"], x1: Float[Tensor, "B *D"]) -> Float[Tensor, " B"]:
    """|x_1 - x_0|^2 for each pair, mean over dimensions."""
    return (x1 - x0).flatten(1).square().mean(1)
