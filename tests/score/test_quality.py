"""The pair-quality table: noise passes, every way of not being noise is named, numbers are those of NumPy."""

import numpy as np
import pytest
import torch

from fmcore.flow.couplings import Pairs
from fmcore.score.pair_quality import BINS, pair_quality, suspicions

COUNT, SHAPE = 4000, (1, 4, 4)


def noise(seed=0, shape=SHAPE):
    return torch.randn((COUNT, *shape), generator=torch.Generator().manual_seed(seed))


def batches(x0, x1=None, label=None, size=700):
    x1 = x0 + 1 if x1 is None else x1
    for first in range(0, len(x0), size):
        rows = slice(first, first + size)
        yield Pairs(x0[rows], x1[rows], None if label is None else label[rows])


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 4, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_suspicious(shape, seed):
    quality = pair_quality(batches(noise(seed, shape))).numbers
    assert suspicions(quality) == []
    assert all(abs(value) < 4 for name, value in quality.items() if name.endswith("_sigmas"))


def test_standard_errors_are_right():
    """Over many sets of noise, each statistic is as many standard errors off as a normal variable is."""
    drawn = [pair_quality(batches(noise(seed))).numbers for seed in range(60)]
    for name in ("mean", "square", "fourth", "neighbours"):
        off = np.array([quality[f"x0_{name}_sigmas"] for quality in drawn])
        assert 0.75 < off.std() < 1.3, name
        assert abs(off.mean()) < 0.5, name


FAULTS = {
    "shifted": (lambda z: z + 0.05, "x0_mean"),
    "too small": (lambda z: 0.95 * z, "x0_square"),
    "uniform of variance 1": (lambda z: (torch.special.ndtr(z) - 0.5) * 12**0.5, "x0_fourth"),
    "smooth": (lambda z: (z + z.roll(1, -1)) / 2**0.5, "x0_neighbours"),
    "not a number": (lambda z: z.masked_fill(z > 3, float("nan")), "x0_mean"),
    "data instead": (lambda z: z.sign(), "x0_fourth"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_noise_is_named(fault):
    change, name = FAULTS[fault]
    lines = suspicions(pair_quality(batches(change(noise()))).numbers)
    assert any(line.startswith(f"{name} is ") for line in lines), lines


def test_numbers_are_those_of_numpy():
    x0, x1 = noise(0), 3 * noise(1)
    label = torch.arange(COUNT) % 3
    quality, bins = pair_quality(batches(x0, x1, label), 4)
    z, cost = x0.double().numpy(), ((x1 - x0).double().numpy() ** 2).mean((1, 2, 3))
    expected = {
        "x0_mean": z.mean(), "x0_square": (z**2).mean(), "x0_fourth": (z**4).mean(),
        "x0_neighbours": (z[..., 1:] * z[..., :-1]).mean(), "cost": cost.mean(), "cost_max": cost.max(),
        "cost_05": np.quantile(cost, 0.05, method="nearest"), "cost_95": np.quantile(cost, 0.95, method="nearest"),
        "not_finite": 0, "class_least": 0, "class_most": 4 * np.bincount(label.numpy()).max() / COUNT,
    }  # fmt: skip
    for name, value in expected.items():
        assert quality[name] == pytest.approx(value, rel=1e-3, abs=1e-9), name
    assert suspicions(quality) == ["a class has no pairs"]
    for what, values in (("cost", cost), ("norm", (z**2).mean((1, 2, 3)))):
        mine = [line for line in bins if line.what == what]
        counts, edges = np.histogram(values, BINS)
        assert [line.number for line in mine] == counts.tolist()
        assert [line.left for line in mine] == pytest.approx(edges[:-1].tolist(), rel=1e-5)


def test_outliers_are_pairs_that_travel_much_farther_than_most():
    x0 = noise()
    x1 = x0 + noise(1)
    x1[::100] += 20
    quality = pair_quality(batches(x0, x1)).numbers
    assert quality["outliers"] == pytest.approx(0.01, abs=1e-3)
    assert pair_quality(batches(x0, x0 + noise(1))).numbers["outliers"] < 1e-3


def test_pairs_that_are_not_finite_are_counted():
    x1 = noise(1)
    x1[7, 0, 0, 0] = float("nan")
    x1[9] = float("inf")
    assert pair_quality(batches(noise(), x1)).numbers["not_finite"] == 2
