"""ODE solvers as data: Butcher tableaux, one step, a whole trajectory.

dx/dt = v(x, t). An explicit Runge-Kutta method with s stages is
    k_i = v(x + h sum_j a_ij k_j, t + c_i h),   x' = x + h sum_i b_i k_i
(Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.1). The grid may run
either way; the step sizes are its differences, so a reversed grid carries data to noise.
"""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from math import isclose
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.fields import VelocityField


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: `a` holds the rows below the diagonal, `order` is what tests verify."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int

    @property
    def stages(self) -> int:
        """Network evaluations a step costs."""
        return len(self.b)


SOLVERS: dict[str, Tableau] = {
    "euler": Tableau(a=((),), b=(1.0,), c=(0.0,), order=1),
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), order=2),
    "heun": Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2),
    "rk4": Tableau(
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 0.5, 0.5, 1.0),
        order=4,
    ),
}
ADAPTIVE = "dopri5"


def solver(name: str) -> Tableau:
    """The fixed-step solver of that name; a ValueError lists the names."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def steps_for(tableau: Tableau, nfe: int) -> int:
    """The number of steps that costs exactly `nfe` evaluations; a ValueError if none does."""
    if nfe < 1 or nfe % tableau.stages:
        raise ValueError(f"a solver with {tableau.stages} evaluations a step cannot spend {nfe}")
    return nfe // tableau.stages


def step(
    field: VelocityField,
    x: Float[Tensor, "B *D"],
    t: float,
    s: float,
    tableau: Tableau,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *D"]:
    """One step of the solver from time t to time s."""
    h = s - t
    slopes: list[Tensor] = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        point = x
        for weight, slope in zip(row, slopes, strict=True):
            if weight:
                point = point + (h * weight) * slope
        slopes.append(field(point, x.new_full((len(x),), t + c * h), label))
    for weight, slope in zip(tableau.b, slopes, strict=True):
        if weight:
            x = x + (h * weight) * slope
    return x


def trajectory(
    field: VelocityField,
    x: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"],
    tableau: Tableau,
    label: Int64[Tensor, " B"] | None = None,
) -> Iterator[Tensor]:
    """Yields x at every knot of the grid, the first one included.

    Raises:
        ValueError: if the grid has fewer than two knots or is not strictly monotone.
    """
    knots = grid.tolist()
    ups = [b - a for a, b in pairwise(knots)]
    if not ups or not (all(h > 0 for h in ups) or all(h < 0 for h in ups)):
        raise ValueError(f"a time grid must be strictly monotone with at least 2 knots, got {knots}")
    yield x
    for t, s in pairwise(knots):
        with torch.no_grad():
            x = step(field, x, t, s, tableau, label)
        yield x


def integrate(
    field: VelocityField,
    x: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"],
    tableau: Tableau,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *D"]:
    """Carries x from the grid's first time to its last.

    Example:
        >>> import torch
        >>> from fmcore.solvers import SOLVERS, integrate
        >>> from fmcore.times import uniform_grid
        >>> shift = lambda x, t, label: torch.ones_like(x)
        >>> integrate(shift, torch.zeros(2, 1), uniform_grid(4), SOLVERS["heun"]).tolist()
        [[1.0], [1.0]]
    """
    (end,) = deque(trajectory(field, x, grid, tableau, label), maxlen=1)
    return end


@torch.no_grad()
def integrate_adaptive(
    field: VelocityField,
    x: Float[Tensor, "B *D"],
    t: float = 0.0,
    s: float = 1.0,
    *,
    rtol: float,
    atol: float,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *D"]:
    """Carries x from time t to time s with torchdiffeq's adaptive dopri5.

    The step control looks at the whole batch, so a sample depends on its batch mates: right for reference
    values, wrong for couplings that must not depend on sharding.
    """
    from torchdiffeq import odeint

    if isclose(t, s):
        raise ValueError(f"nothing to integrate between t = {t} and s = {s}")
    knots = torch.tensor([t, s], dtype=x.dtype, device=x.device)
    path = odeint(
        lambda at, point: field(point, at.expand(len(point)), label),
        x,
        knots,
        rtol=rtol,
        atol=atol,
        method="dopri5",
    )
    end: Tensor = path[-1]
    return end
