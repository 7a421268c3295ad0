"""Features to score: skewed ones, and draws of normal distributions; and a kernel distance that is quick."""

import torch

from fmcore.score.fidelity import kid


def normal(count, dims, seed=0, dtype=torch.float64):
    return torch.randn((count, dims), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(seed, count=150, dims=6):
    """Correlated, skewed and off centre, as features are."""
    return (normal(count, dims, seed) @ normal(dims, dims, 100)).relu() + 0.3 * normal(count, dims, 50 + seed)


def values(found):
    return [estimate.value for estimate in found]


def draws(shift, scale, reps, real=300, fake=300):
    for rep in range(reps):
        yield shift + scale * normal(fake, 8, 2 * rep), normal(real, 8, 2 * rep + 1)


def quick(x, y, seed=0):
    return kid(x, y, seed=seed, subsets=10, subset_size=100)
