"""How large or small a number of params.yaml may be.

Beyond these lie a digit too many or an e-30 for an e-3: what would fill the memory, overflow, or never end, often
hours after the run began. They are far from anything of use. Bounds that the mathematics gives stand with the
sections themselves.
"""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

LEAST_POINTS = 20  # that the distances between sets of points need, for their jackknife
LEFT = 20  # fewest pairs that may be left without the longest
ANY = -inf  # where another rule says how small it may be
MOST_STEPS = 100_000  # of a solver: a sample would take hours
BOUNDS: dict[str, tuple[float, float]] = {
    "train.images": (ANY, 10**13),
    "train.batch_size": (ANY, 2**20),
    "train.lr": (ANY, 10),
    "train.warmup_images": (ANY, 10**13),
    "train.weight_decay": (ANY, 100),
    "train.clip_norm": (ANY, 1e9),
    "launch.processes": (1, 64),
    "data.count": (LEAST_POINTS, 10**9),
    "couple.pairs": (ANY, 10**10),
    "couple.inverted": (ANY, 10**10),
    "couple.nfe": (ANY, MOST_STEPS),
    "distance.scale": (1e-12, 1e6),
    "ending.weight": (ANY, 1e6),
    "ending.real": (ANY, 2**20),
    "ending.k": (ANY, 1000),
    "ending.halvings": (ANY, 16),
    "grid.trajectories": (ANY, 10**6),
    "train.ema_halflife_images": (ANY, 10**13),
    "path.sigma_min": (ANY, 1),
    "path.sigma_max": (1e-3, 1e6),
    "path.beta_min": (ANY, 1000),
    "path.beta_max": (1e-3, 1000),
    "evaluate.samples": (ANY, 10**8),
    "evaluate.repeats": (ANY, 1000),
    "evaluate.solvers.*": (ANY, MOST_STEPS),
    "evaluate.dopri5.rtol": (1e-12, 1),
    "evaluate.dopri5.atol": (1e-12, 1),
    "evaluate.likelihood.samples": (ANY, 10**8),
    "evaluate.likelihood.nfe": (ANY, MOST_STEPS),
    "evaluate.likelihood.probes": (ANY, 100_000),
}


def out_of_bounds(raw: Mapping[str, Any]) -> Iterator[str]:
    """A line for each number of params.yaml, as JSON has it, that lies beyond its bounds."""
    for key, value in _numbers(raw, ""):
        words = key.split(".")
        at = [*words[:-1], "*"] if words[:2] == ["evaluate", "solvers"] else words
        for end in {".".join(at[-2:]), ".".join(at[-3:])}:
            bounds = BOUNDS.get(end)
            if bounds and not bounds[0] <= value <= bounds[1]:
                wanted = "at most" if bounds[0] == ANY else f"a number from {bounds[0]:,} to"
                yield f"{key}: expected {wanted} {bounds[1]:,}, got {value}"


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
