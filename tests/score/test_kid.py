"""The kernel distance against torch-fidelity, a double loop, its true value and its own repetitions."""

from math import comb, sqrt

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric, kid_featuresdict_to_metric

import fmcore.score.fidelity as fidelity
from feature_samples import draws, features, quick, values
from fmcore.score.fidelity import kid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kid_is_torch_fidelity_s(dtype):
    x, y = features(1, 130).to(dtype), features(2, 110).to(dtype)
    for seed, size in ((0, 60), (2020, 110)):
        found = kid(x, y, seed=seed, subsets=7, subset_size=size)
        told = kid_featuresdict_to_metric(
            {"a": x}, {"a": y}, "a", kid_subsets=7, kid_subset_size=size, rng_seed=seed, verbose=False
        )
        assert found.value == told["kernel_inception_distance_mean"]
        assert found.samples == 130
    assert kid(x, y, subsets=3) == kid(x, y, subsets=3, subset_size=110)


def test_kid_of_a_thousand_samples_is_what_the_standard_tool_prints_by_default():
    x, y = features(1, 1100, 4).float(), features(2, 1050, 4).float()
    theirs = kid_features_to_metric(x, y, kid_subsets=5, verbose=False)
    assert kid(x, y, seed=2020, subsets=5).value == theirs["kernel_inception_distance_mean"]


def naive_mmd(x, y):
    def mean(a, b):
        same = a is b
        found = [
            (1 + float(p @ q) / len(p)) ** 3
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if i != j or not same
        ]
        return sum(found) / len(found)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def test_kid_of_one_subset_of_everything_is_a_double_loop():
    x, y = features(1, 25, 3), features(2, 25, 3) + 0.5
    assert kid(x, y, subsets=2).value == pytest.approx(naive_mmd(x, y), rel=1e-9)


def test_what_the_jackknife_of_kid_leaves_out_is_a_double_loop_of_the_rest():
    x, y = features(1, 23, 3), features(2, 31, 3)
    for group, found in enumerate(fidelity._mmd_left_out(x, y)):
        rest = [part[torch.arange(len(part)) % 10 != group] for part in (x, y)]
        assert found == pytest.approx(naive_mmd(*rest), rel=1e-9)


def third_moments(mean, covariance):
    """E x, E x x, E x x x of a normal distribution."""
    second = covariance + mean.outer(mean)
    mixed = torch.einsum("i,jk->ijk", mean, covariance)
    mixed = mixed + mixed.permute(1, 0, 2) + mixed.permute(1, 2, 0)
    return mean, second, torch.einsum("i,j,k->ijk", mean, mean, mean) + mixed


def true_kid(a, b):
    """(x.y / D + 1)^3 is a sum of scalar products of powers, so KID is one of squared differences of moments."""
    dims = len(a[0])
    gaps = [p - q for p, q in zip(third_moments(*a), third_moments(*b), strict=True)]
    return sum(comb(3, n) * float(gap.square().sum()) / dims**n for n, gap in enumerate(gaps, 1))


EYE, ZERO = torch.eye(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.1, 1.2)])
def test_the_true_kid_lies_in_two_standard_errors(shift, scale):
    """Without bias, and the error is the spread over repetitions: never below, and above for equal sets only."""
    truth = true_kid((ZERO + shift, scale**2 * EYE), (ZERO, EYE))
    found = [quick(x, y, seed) for seed, (x, y) in enumerate(draws(shift, scale, 60, fake=400))]
    spread = float(np.std(values(found), ddof=1))
    assert np.mean(values(found)) == pytest.approx(truth, abs=5 * spread / sqrt(60))
    assert np.mean([abs(e.value - truth) <= 2 * e.std for e in found]) >= 0.85
    told = sqrt(np.mean([e.std**2 for e in found]))
    assert 0.75 < told / spread < (2.2 if (shift, scale) == (0, 1) else 1.4)


def test_few_small_subsets_make_the_error_larger_by_as_much_as_they_scatter():
    x, y = features(1, 300), features(2, 300)
    found = [kid(x, y, seed=seed, subsets=4, subset_size=30) for seed in range(40)]
    scatter = float(np.std(values(found), ddof=1))
    least = kid(x, y, subsets=1, subset_size=300).std
    assert sqrt(np.mean([e.std**2 for e in found])) == pytest.approx(sqrt(least**2 + scatter**2), rel=0.3)
    assert scatter > least


def test_an_error_made_on_a_part_of_the_rows_is_scaled_to_all(monkeypatch):
    x, y = next(draws(0.5, 1.0, 1, real=2000, fake=2000))
    whole = quick(x, y).std
    monkeypatch.setattr(fidelity, "JACKKNIFED", 500)
    assert quick(x, y).std == pytest.approx(whole, rel=0.5)  # it would be twice as large unscaled
    assert quick(x, y).value == kid(x, y, subsets=10, subset_size=100).value


def test_kid_depends_on_the_order_of_rows_by_its_subsets_only():
    x, y = features(1), features(2)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert kid(x[order], y, subsets=2).value == pytest.approx(kid(x, y, subsets=2).value, rel=1e-9)
    assert quick(x[order], y).value != quick(x, y).value
