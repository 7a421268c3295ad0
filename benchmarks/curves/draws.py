"""What drawing a batch costs: assignments of noise to data, and times."""

from itertools import count as counting

import numpy as np
import torch
from lap import lapjvx
from scipy.optimize import linear_sum_assignment
from scipy.stats import rv_continuous

from benchmarks.curves.timing import median
from fmcore.flow import rng
from fmcore.flow.couplings import Independent, MinibatchOT
from fmcore.flow.times import UShaped


def assignment_costs(count: int, repeats: int) -> list[str]:
    """A line of the table: milliseconds to draw a batch, and of them to pair it at least cost, on one thread."""
    fresh = Independent(torch.rand(4096, 1, 8, 8, generator=rng.generator(0, "images")) * 2 - 1)
    steps = counting()
    (x0, x1, _) = fresh(count, rng.generator(0, "train"))
    cost = -(x1.flatten(1) @ x0.flatten(1).T).numpy()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain, ot = (
        median(lambda drawn=coupling: drawn(count, rng.generator(0, "train", next(steps))), repeats)
        for coupling in (fresh, MinibatchOT(fresh))
    )
    torch.set_num_threads(threads)
    theirs, ours = (
        median(lambda: linear_sum_assignment(cost), repeats),
        median(lambda: lapjvx(cost, return_cost=False), repeats),
    )
    return [str(count), *(f"{1e3 * s:.2f}" for s in (plain, ot, theirs, ours)), f"{theirs / ours:.1f}"]


# --- times ----------------------------------------------------------------------------------------------------


class ByDensity(rv_continuous):
    """Times from their density alone, as rfpp draws them: for each, scipy inverts the integral of it."""

    def _pdf(self, t: np.ndarray) -> np.ndarray:
        a = 4.0
        return a * (np.exp(a * t) + np.exp(a * (1 - t))) / (2 * np.expm1(a))


def time_costs(count: int, repeats: int) -> list[str]:
    """A line of the table: milliseconds to draw so many u-shaped times."""
    theirs, ours, generator = ByDensity(a=0.0, b=1.0), UShaped(a=4.0), rng.generator(0, "times")
    slow = median(lambda: theirs.rvs(size=count, random_state=0), repeats)
    fast = median(lambda: [ours(count, generator) for _ in range(100)], repeats) / 100
    return [str(count), f"{1e3 * slow:.1f}", f"{1e3 * fast:.4f}", f"{slow / fast:,.0f}"]
