"""A path of every kind, times on them, and points of them from noise to mixtures."""

import pytest
import torch
from hypothesis import strategies as st

from fmcore.analytic import sample_mixture
from fmcore.flow.paths import LARGEST_SNR, PATHS, VE, VP, Discrete, Linear, Polynomial, half_log_snr, interpolate

BATCH = st.integers(1, 5)
DIMS = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
SEED = st.integers(0, 2**31)

# DDPM's table as diffusers' DDPMScheduler(1000) computes it, in float64.
DDPM = tuple((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).tolist())
NEEDED = {"discrete": {"alphas_cumprod": DDPM}}
VARIANTS = [
    Linear(sigma_min=0.1),
    Polynomial(power=3.0),
    Polynomial(power=1.0),
    VP(beta_min=0.5, beta_max=20.0),
    VP(beta_min=9.0, beta_max=9.0),
    VE(sigma_min=0.002, sigma_max=80.0),
    Discrete(DDPM[::100]),
]
DEFAULTS = [path(**NEEDED.get(name, {})) for name, path in PATHS.items()]
EXAMPLES = DEFAULTS + VARIANTS


def naming(path):
    values = [v for k, v in vars(path).items() if k != "name"]
    return "-".join([path.name, *(f"{len(v)}" if isinstance(v, tuple) else f"{v:g}" for v in values)])


each_path = pytest.mark.parametrize("path", EXAMPLES, ids=naming)

# 1-D and 2-D mixtures: weights, means, standard deviations.
MIXTURES = {
    1: (torch.tensor([0.4, 0.6]), torch.tensor([[-1.5], [1.0]]), torch.tensor([0.5, 0.3])),
    2: (torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 1.0]]), torch.tensor([0.6, 0.4])),
}
MIXTURES = {dims: tuple(value.double() for value in values) for dims, values in MIXTURES.items()}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, dims, seed=0):
    return torch.randn((count, dims), generator=gen(seed), dtype=torch.float64)


def levels(path, reach=LARGEST_SNR):
    """The lowest and the highest half log signal-to-noise ratio of the path's span, within +-reach."""
    return half_log_snr(path, f64(*path.span)).clamp(-reach, reach).tolist()


def times(path, count, seed=0):
    """Times spread over the path's span, its outermost hundredths left out."""
    low, high = path.span
    share = torch.rand(count, generator=gen(seed), dtype=torch.float64)
    return low + (high - low) * (0.01 + 0.98 * share)


def between(path, count, seed=0, reach=3.0):
    """Times at which neither of signal and noise is below e^-reach of the other: each kind determines the rest."""
    low, high = levels(path, reach)
    share = torch.rand(count, generator=gen(seed), dtype=torch.float64)
    return path.time_at(low + (high - low) * (0.01 + 0.98 * share))


def pairs(batch, dims, seed):
    return torch.randn((2, batch, *dims), generator=gen(seed), dtype=torch.float64).unbind()


def on_path(path, dims, t, seed=0):
    """Points of the path from noise to the mixture at their times, and their velocities."""
    g = gen(seed)
    x0 = torch.randn((len(t), dims), generator=g, dtype=torch.float64)
    return interpolate(path, x0, sample_mixture(*MIXTURES[dims], len(t), g), t)


def derivative(y, x):
    return torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
