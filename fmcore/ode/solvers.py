"""Solvers: Butcher tableaux, methods with memory or noise, one trajectory and one `integrate` for all.

dx/dt = v(x, t). An explicit Runge-Kutta method with s stages is
    k_i = v(x + h sum_j a_ij k_j, t + c_i h),   x' = x + h sum_i b_i k_i
(Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.1). The grid may run
either way; the step sizes are its differences, so a reversed grid carries data to noise.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isclose
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.flow.fields import Field, VelocityField, as_field, mean_velocity, velocity_at
from fmcore.flow.speed import is_out_of_memory
from fmcore.flow.times import uniform_grid
from fmcore.ode.stochastic import Ancestral, EulerMaruyama, Noisy


@runtime_checkable
class Solver(Protocol):
    """A method that integrates a field on a given grid.

    Main arguments:
        stages: network evaluations a step.
        saved: evaluations fewer that the step which ends at the data takes.
        order: the end's error shrinks as step^order (in law, for a stochastic solver); 0 if it does not shrink.
        stochastic: the end is random given the start.
        reversible: may start at any time and run either way; other solvers run from noise to data only.
    """

    @property
    def stages(self) -> int: ...

    @property
    def saved(self) -> int: ...

    @property
    def order(self) -> int: ...

    @property
    def stochastic(self) -> bool: ...

    @property
    def reversible(self) -> bool: ...

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        """Yields x at every knot after the first."""
        ...


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: `a` holds the rows below the diagonal."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    saved: ClassVar[int] = 0
    stochastic: ClassVar[bool] = False
    reversible: ClassVar[bool] = True

    @property
    def stages(self) -> int:
        """Network evaluations a step costs."""
        return len(self.b)

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        for t, s in pairwise(knots):
            x = step(field, x, t, s, self, label)
            yield x


@dataclass(frozen=True)
class Euler(Tableau):
    """x + (s - t) v(x, t). Of a flow map, a step towards the data is the map's own: x + (s - t) u(x, t, s)."""

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        for t, s in pairwise(knots):
            if s > t:  # a map goes one way
                u = mean_velocity(field, x, x.new_full(x.shape[:1], t), x.new_full(x.shape[:1], s), label)
                x = x + (s - t) * u
            else:
                x = step(field, x, t, s, self, label)
            yield x


@dataclass(frozen=True)
class AdamsBashforth:
    """The two-step method on any grid: the line through this velocity and the last, integrated over the step.

    Hairer, Norsett, Wanner, section III.5. One evaluation a step at order 2; the first step is Euler's.
    """

    stages: ClassVar[int] = 1
    saved: ClassVar[int] = 0
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    reversible: ClassVar[bool] = True

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        last: tuple[Tensor, float] | None = None
        for t, s in pairwise(knots):
            v, h = velocity_at(field, x, t, label), s - t
            bend = 0 if last is None else (h / last[1] / 2) * (v - last[0])
            x, last = x + h * (v + bend), (v, h)
            yield x


@dataclass(frozen=True)
class Heun:
    """The mean of the velocities at both ends of a step; Euler in the step next to the data, whose end is t = 1.

    So it never evaluates the velocity at t = 1, like algorithm 1 of Karras et al. (arXiv:2206.00364) and Lee et
    al. (arXiv:2405.20320): N steps cost 2 N - 1 evaluations. A velocity network is worst at t = 1, where x is data
    and says nothing of the noise that the velocity depends on.
    """

    stages: ClassVar[int] = 2
    saved: ClassVar[int] = 1
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    reversible: ClassVar[bool] = True

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        for t, s in pairwise(knots):
            x = step(field, x, t, s, EULER if 1.0 in (t, s) else TRAPEZE, label)
            yield x


@dataclass(frozen=True)
class NoiseAnchored:
    """x <- s (x + (1 - t) v) + (1 - s) x_0: from the *initial* noise to the predicted data, by the share s.

    Lee et al., "Improving the Training of Rectified Flows" (arXiv:2405.20320), section 4.4. (Euler takes the
    latest predicted noise instead.) It is exact on straight paths, and a little better than Euler on nearly
    straight ones. It does not converge on curved paths: its error grows with the number of steps.
    """

    stages: ClassVar[int] = 1
    saved: ClassVar[int] = 0
    order: ClassVar[int] = 0
    stochastic: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        x0 = x
        for t, s in pairwise(knots):
            x = s * (x + (1 - t) * velocity_at(field, x, t, label)) + (1 - s) * x0
            yield x


EULER = Euler(a=((),), b=(1.0,), c=(0.0,), order=1)
TRAPEZE = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2)
SOLVERS: dict[str, Solver] = {
    "euler": EULER,
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), order=2),
    "heun": Heun(),
    "rk4": Tableau(
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 0.5, 0.5, 1.0),
        order=4,
    ),
    "ab2": AdamsBashforth(),
    "noise_anchored": NoiseAnchored(),
    "sde": EulerMaruyama(),
    "ancestral": Ancestral(),
}
ADAPTIVE = "dopri5"


def solver(name: str | Solver) -> Solver:
    """The fixed-step solver of that name; a Solver is returned as it is.

    Raises:
        ValueError: for an unknown name; it lists the known ones.
        TypeError: for what is neither a name nor a Solver.
    """
    if not isinstance(name, str):
        if isinstance(name, type) or not isinstance(name, Solver):
            raise TypeError(f"solver: expected a name ({', '.join(SOLVERS)}) or a Solver, got {name!r}")
        return name
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


_method = solver  # for functions with a parameter of that name


def seeded(method: Solver, seed: int, start: int) -> Solver:
    """The solver with the noise of a seed, for samples from index `start` on; one without noise stays as it is."""
    return replace(method, seed=seed, start=start) if isinstance(method, Noisy) else method


def cost(solver: Solver, steps: int) -> int:
    """Network evaluations of `steps` steps that end at the data."""
    return solver.stages * steps - solver.saved


def steps_for(solver: Solver, nfe: int, *, passes: int = 1) -> int:
    """The number of steps that costs exactly `nfe` evaluations; a ValueError if none does.

    Main arguments:
        passes: network evaluations per evaluation of the field; 2 under guidance.
    """
    steps = (nfe // passes + solver.saved) // solver.stages
    if steps < 1 or passes * cost(solver, steps) != nfe:
        guided = " under guidance" if passes > 1 else ""
        costs = ", ".join(str(passes * cost(solver, n)) for n in (1, 2, 3))
        raise ValueError(f"a solver whose steps{guided} cost {costs}, ... evaluations cannot spend {nfe}")
    return steps


def step(
    field: VelocityField,
    x: Float[Tensor, "B *D"],
    t: float,
    s: float,
    tableau: Tableau,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *D"]:
    """One Runge-Kutta step from time t to time s."""
    h = s - t
    slopes: list[Tensor] = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        point = x
        for weight, slope in zip(row, slopes, strict=True):
            if weight:
                point = point + (h * weight) * slope
        slopes.append(velocity_at(field, point, t + c * h, label))
    for weight, slope in zip(tableau.b, slopes, strict=True):
        if weight:
            x = x + (h * weight) * slope
    return x


def trajectory(
    field: Field,
    x: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"] | int,
    solver: Solver | str,
    label: Int64[Tensor, " B"] | None = None,
    *,
    gradients: bool = False,
) -> Iterator[Tensor]:
    """Yields x at every knot of the grid, the first one included. The arguments are those of `integrate`.

    Raises:
        ValueError: if the grid has fewer than two knots or is not strictly monotone, or if it does not rise from 0
            to at most 1 and the solver is not `reversible`.
        TypeError: for a field, x, grid or solver that is none.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"one of {x.dtype}" if isinstance(x, Tensor) else f"{type(x).__name__}"
        raise TypeError(f"x: expected a tensor of floats, got {got}")
    knots, field, solver = grid_of(grid).tolist(), as_field(field), _method(solver)
    ups = [b - a for a, b in pairwise(knots)]
    if not ups or not (all(h > 0 for h in ups) or all(h < 0 for h in ups)):
        raise ValueError(f"a time grid must be strictly monotone with at least 2 knots, got {knots}")
    if not solver.reversible and (knots[0] != 0 or ups[0] < 0 or knots[-1] > 1):
        raise ValueError(f"{type(solver).__name__} runs from noise at 0 to data at 1 only, got the grid {knots}")
    yield x
    walk = solver.walk(field, x, knots, label)
    while True:
        with torch.set_grad_enabled(gradients):  # not across a yield: it would hold in the caller
            x_t = next(walk, None)
        if x_t is None:
            return
        yield x_t


def grid_of(grid: Float[Tensor, " knots"] | int) -> Float[Tensor, " knots"]:
    """The times of a grid: as they are given, or those of a number of equal steps from 0 to 1."""
    if isinstance(grid, bool) or not isinstance(grid, int | Tensor):
        raise TypeError(f"grid: expected a number of equal steps, or a tensor of times, got {grid!r}")
    return uniform_grid(grid) if isinstance(grid, int) else grid


def integrate(
    field: Field,
    x: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"] | int,
    solver: Solver | str,
    label: Int64[Tensor, " B"] | None = None,
    *,
    gradients: bool = False,
) -> Float[Tensor, "B *D"]:
    """Carries x from the grid's first time to its last.

    Main arguments:
        field: of (x, t, label), or of (x, t): dx/dt at points (B, *D) and times (B,).
        grid: times, or a number of equal steps from 0 to 1.
        solver: one of `SOLVERS`, or its name.
        gradients: keeps what gradients of the end need, by x and the field's parameters; memory grows by step.

    Raises:
        ValueError, TypeError: as `trajectory`.

    Example:
        >>> import torch
        >>> from fmcore import integrate
        >>> integrate(lambda x, t: torch.ones_like(x), torch.zeros(2, 1), 4, "heun").tolist()
        [[1.0], [1.0]]
    """
    (end,) = deque(trajectory(field, x, grid, solver, label, gradients=gradients), maxlen=1)
    return end


def solve(
    field: Field,
    x: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"],
    solver: Solver,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *D"]:
    """`integrate`; a batch that does not fit into memory is halved, which may change the last bits."""
    try:
        return integrate(field, x, grid, solver, label)
    except RuntimeError as error:
        if len(x) == 1 or not is_out_of_memory(error):
            raise
    # Outside of `except`: inside, the error keeps the failed batch's memory.
    half = len(x) // 2
    later = replace(solver, start=solver.start + half) if isinstance(solver, Noisy) else solver
    rest = None if label is None else label[half:]
    first = solve(field, x[:half], grid, solver, None if label is None else label[:half])
    return torch.cat([first, solve(field, x[half:], grid, later, rest)])


@torch.no_grad()
def integrate_adaptive(
    field: Field,
    x: Float[Tensor, "B *D"],
    t: float = 0.0,
    s: float = 1.0,
    *,
    rtol: float,
    atol: float,
    label: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *D"]:
    """Carries x from time t to time s with torchdiffeq's adaptive dopri5.

    The step control looks at the whole batch, so a sample depends on the others in its batch. That suits reference
    values, but not couplings, which must not depend on sharding.
    """
    from torchdiffeq import odeint

    if isclose(t, s):
        raise ValueError(f"nothing to integrate between t = {t} and s = {s}")
    knots, of = torch.tensor([t, s], dtype=x.dtype, device=x.device), as_field(field)
    path = odeint(
        lambda at, point: of(point, at.expand(len(point)), label),
        x,
        knots,
        rtol=rtol,
        atol=atol,
        method="dopri5",
    )
    end: Tensor = path[-1]
    return end
