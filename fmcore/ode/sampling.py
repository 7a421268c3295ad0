"""`Sampling`, the one description of how samples are drawn, and the search for an optimised grid."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.flow.fields import Guidance, VelocityField
from fmcore.flow.times import Grid, OptimisedGrid, UniformGrid, uniform_grid
from fmcore.ode.solvers import ADAPTIVE, SOLVERS, Solver, integrate, solver, steps_for

UNIFORM = UniformGrid()
Starts = Callable[[int], tuple[Tensor, Tensor | None]]  # a count to the noise and labels of the first samples


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Main arguments:
        solver: a name of `SOLVERS`, or `ADAPTIVE`, which chooses its own steps.
        grid: where the steps lie; None for the adaptive solver.
        nfe: network evaluations a sample; under guidance each evaluation of the field takes two. 0 for the
            adaptive solver.
        guidance: classifier-free guidance, or None.
    """

    solver: str = "euler"
    grid: Grid | None = UNIFORM
    nfe: int = 1
    guidance: Guidance | None = None

    @property
    def is_adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return self.solver == ADAPTIVE

    @property
    def grid_name(self) -> str:
        """The grid's name; empty for the adaptive solver."""
        return "" if self.grid is None else self.grid.name

    @property
    def method(self) -> Solver:
        """The fixed-step solver; a ValueError lists the names if this one is unknown."""
        return solver(self.solver)

    @property
    def steps(self) -> int:
        """The number of steps that costs `nfe`; a ValueError if none does."""
        return steps_for(self.method, self.nfe, passes=1 if self.guidance is None else 2)

    def knots(self) -> Float[Tensor, " knots"]:
        """The times from 0 to 1 between which the solver steps; an optimised grid needs `found_knots` instead."""
        assert self.grid is not None
        assert not isinstance(self.grid, OptimisedGrid)
        return self.grid(self.steps)

    def found_knots(self, field: VelocityField, starts: Starts) -> Float[Tensor, " knots"]:
        """`knots`, or those of an optimised grid, searched for on noise and labels that `starts` draws."""
        if not isinstance(self.grid, OptimisedGrid):
            return self.knots()
        x0, label = starts(self.grid.trajectories)
        return optimised_grid(field, x0, self.steps, self.method, label=label)


def optimised_grid(
    field: VelocityField,
    x0: Float[Tensor, "B *D"],
    steps: int,
    solver: Solver,
    *,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, " knots"]:
    """A grid of `steps` steps on which the solver carries a few x0 close to where the exact flow does.

    The search starts from the uniform grid and shifts one knot at a time, by ever smaller shifts. It keeps a shift
    if the mean squared error of the ends falls. So on these x0 the grid is never worse than the uniform one. Costs
    at most 24 `steps` solves of x0, besides the exact one.

    Raises:
        FloatingPointError: if the exact trajectories are not finite.
    """
    end = integrate(field, x0, uniform_grid(max(64, 4 * steps)), SOLVERS["rk4"], label)
    if not torch.isfinite(end).all():
        raise FloatingPointError("the field diverged on the trajectories that a grid was to be found on")

    def error(knots: list[float]) -> float:
        found = integrate(field, x0, torch.tensor(knots, dtype=torch.float64), solver, label)
        return float((found - end).square().mean())

    knots = uniform_grid(steps).tolist()
    best = error(knots)
    for halving, i in product((2, 2, 4, 4, 8, 8, 16, 16, 32, 32, 64, 64), range(1, steps)):
        for s in (knots[i] - 1 / (halving * steps), knots[i] + 1 / (halving * steps)):
            trial = [*knots[:i], s, *knots[i + 1 :]]
            if knots[i - 1] < s < knots[i + 1] and (found := error(trial)) < best:
                knots, best = trial, found
    return torch.tensor(knots, dtype=torch.float64)
