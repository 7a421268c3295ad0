"""One model over solvers, grids and NFE: which ways of sampling there are, and their samples.

All models and all runs start from the same noise, so differences between scores are far less noisy than the
scores themselves. Each repeat has a range of noise of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from torch import Tensor

from flows.params.schema import Evaluate, Params
from fmcore.flow.fields import Counted, VelocityField
from fmcore.flow.speed import moved
from fmcore.models.folder import Trained
from fmcore.ode.reflow import draw
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import ADAPTIVE, SOLVERS, integrate_adaptive, seeded, solve, trajectory

NOISE_BYTES = 2**28  # noise up to this size is drawn once and kept for all runs
ADAPTIVE_NFE = 100  # a guess at an adaptive run's NFE: for the progress bar, and for whether compiling pays
PATH_BYTES = 2**30  # the device's memory that whole paths may take


def samplings_of(section: Evaluate, *, k: int | None, paired: bool) -> list[Sampling]:
    """The ways to sample that a model is scored on.

    A student of k steps takes uniform Euler steps: k, or a divisor of k. Other models take all that the section
    lists. Two grids may have the same knots, as all grids of one step do; then only the first is sampled.

    Main arguments:
        k: the number of steps that the student was trained for; None for a flow and for a flow map.
        paired: whether the model was trained on pairs. The velocity of pairs does not give the score, so a
            stochastic solver cannot use it.
    """
    if k is not None:
        return [Sampling(nfe=n) for n in sorted({k, *section.solvers["euler"]}) if k % n == 0]
    solvers = {name: nfes for name, nfes in section.solvers.items() if not (paired and SOLVERS[name].stochastic)}
    found: dict[tuple[str, tuple[float, ...]], Sampling] = {}
    for grid in section.grids:
        for name, nfes in solvers.items():
            for nfe in sorted(nfes):
                how = Sampling(name, grid, nfe)
                found.setdefault((name, tuple(round(t, 12) for t in how.knots().tolist())), how)
    return list(found.values()) + ([Sampling(ADAPTIVE, None, 0)] if section.dopri5 else [])


def finest(samplings: Sequence[Sampling]) -> Sampling:
    """The run that the probes look at: Euler's method with the most steps, on the first grid."""
    first = samplings[0].grid
    return max((how for how in samplings if how.solver == "euler" and how.grid == first), key=lambda how: how.nfe)


class Batch(NamedTuple):
    """The noise and samples of one batch, its classes, NFE, and the points of its whole paths if asked for."""

    x0: Tensor
    x1: Tensor
    label: Tensor | None
    nfe: int
    points: list[Tensor]


Noise = Callable[[int, int], tuple[Tensor, Tensor | None]]


def noise_of(model: Trained, params: Params, labels: Tensor | None) -> Noise:
    """The noise and classes `(first, count)` that every run of this model starts from, on its device."""

    def drawn(first: int, count: int) -> tuple[Tensor, Tensor | None]:
        x0, label = draw(first, count, shape=model.shape, seed=params.seed, purpose="evaluate", labels=labels)
        return moved(x0, model.device), None if label is None else moved(label, model.device)

    section = params.evaluate
    total = 4 * section.samples * section.repeats * prod(model.shape)
    return lru_cache(None if total <= NOISE_BYTES else 0)(drawn)


def sampled(
    field: VelocityField, params: Params, how: Sampling, repeat: int, noise: Noise, *, bends: bool
) -> Iterator[Batch]:
    """Samples from the noise of a repeat batch by batch; memory holds one, with its whole paths if `bends`."""
    section = params.evaluate
    start, stop, size = repeat * section.samples, (repeat + 1) * section.samples, section.batch
    if bends:
        size = max(1, min(size, PATH_BYTES // (4 * len(how.knots()) * prod(params.data.shape))))
    for first in range(start, stop, size):
        x0, label = noise(first, min(size, stop - first))
        counted = Counted(field)
        points: list[Tensor] = []
        if how.is_adaptive:
            assert section.dopri5 is not None
            rtol, atol = section.dopri5.rtol, section.dopri5.atol
            x1 = integrate_adaptive(counted, x0, rtol=rtol, atol=atol, label=label)
        else:
            solver = seeded(how.method, params.seed, first)
            if bends:
                points = list(trajectory(counted, x0, how.knots(), solver, label))
            x1 = points[-1] if bends else solve(counted, x0, how.knots(), solver, label)
        # `how.nfe`, not the count: a batch halved for lack of memory was begun twice.
        yield Batch(x0, x1, label, counted.nfe if how.is_adaptive else how.nfe, points)
