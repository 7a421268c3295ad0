"""Probability paths: how a pair (x_0, x_1) is joined.

A path maps (x_0, x_1, t) to the point x_t and its velocity u_t = d x_t / dt. It is the conditional path of
Lipman et al., "Flow Matching for Generative Modeling" (arXiv:2210.02747), section 4, written in terms of the
pair it connects: x_0 is the noise that was drawn, x_1 the data it is paired with.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

ProbPath = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def expand(t: Float[Tensor, " B"], x: Float[Tensor, "B *D"]) -> Tensor:
    """Views t of shape (B,) so that it broadcasts against x of shape (B, *D)."""
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def linear(
    x0: Float[Tensor, "B *D"], x1: Float[Tensor, "B *D"], t: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B *D"], Float[Tensor, "B *D"]]:
    """The straight path x_t = (1 - t) x_0 + t x_1 with velocity u_t = x_1 - x_0.

    It is the conditional OT path of Lipman et al. (eqs. 20-23 with sigma_min = 0) and the interpolation of
    Liu et al., "Flow Straight and Fast" (arXiv:2209.03003), eq. 1.

    Returns:
        (x_t, u_t), both of x's shape.
    """
    t = expand(t, x0)
    return (1 - t) * x0 + t * x1, x1 - x0


PATHS: dict[str, ProbPath] = {"linear": linear}
