"""Metrics against closed forms, scipy and torch-fidelity."""

from itertools import pairwise
from math import hypot, isnan, sqrt

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric

from fmcore.flow.times import GRIDS, uniform_grid
from fmcore.score.estimates import (
    Estimate,
    bias_corrected,
    difference,
    group_sizes,
    jackknife,
    mean_estimate,
    pooled,
)
from fmcore.score.frechet import Stats, frechet_distance, frechet_estimate, frechet_floor, frechet_infinity, stats
from fmcore.score.points import POINT_METRICS, energy_distance, sliced_wasserstein
from fmcore.score.straightness import straightness, transport_cost

pytestmark = pytest.mark.numerics


def normal(count, dims, seed=0, dtype=torch.float64):
    return torch.randn((count, dims), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(seed, count=400, dims=6):
    """Correlated, skewed and off centre, as features are."""
    mix = normal(dims, dims, 100 + seed)
    return (normal(count, dims, seed) @ mix).relu() + 0.3 * normal(count, dims, 50 + seed) + seed


def exact(mean, covariance, count=10**6):
    """The statistics of infinitely many samples with these moments, as if they were `count`."""
    total = count * mean
    return Stats(count, total, (count - 1) * covariance + count * mean.outer(mean))


# --- statistics ---------------------------------------------------------------------------------------------


@given(cut=st.integers(1, 39), seed=st.integers(0, 100), shift=st.floats(-100, 100))
def test_statistics_add_up_and_subtract(cut, seed, shift):
    f = normal(40, 3, seed) + shift
    whole, a, b = stats(f), stats(f[:cut]), stats(f[cut:])
    for found, wanted in ((a + b, whole), (whole - b, a)):
        assert found.count == wanted.count
        torch.testing.assert_close(found.total, wanted.total)
        torch.testing.assert_close(found.outer, wanted.outer)


def test_mean_and_covariance_are_numpy_s():
    f = features(1)
    torch.testing.assert_close(stats(f).mean, torch.from_numpy(np.mean(f.numpy(), 0)))
    torch.testing.assert_close(stats(f).covariance, torch.from_numpy(np.cov(f.numpy().T)))


def test_half_precision_features_are_summed_in_double():
    f = features(1).half()
    torch.testing.assert_close(stats(f).mean, torch.from_numpy(f.numpy().astype(np.float64).mean(0)))
    assert stats(f).outer.dtype == torch.float64


# --- Frechet distance ---------------------------------------------------------------------------------------


def test_frechet_by_hand():
    """N(0, I_8) and N(1, 4 I_8): 8 for the means and 8 (2 - 1)^2 for the deviations."""
    ones, eye = torch.ones(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    a, b = exact(0 * ones, eye), exact(ones, 4 * eye)
    assert frechet_distance(a, b) == pytest.approx(16, rel=1e-9)
    assert frechet_distance(stats(normal(50_000, 8)), stats(1 + 2 * normal(50_000, 8, 1))) == pytest.approx(
        16, abs=0.3
    )


def test_frechet_of_commuting_covariances_is_the_distance_of_their_roots():
    turn = torch.linalg.qr(normal(5, 5))[0]
    s, r = torch.tensor([0.0, 0.1, 1, 2, 5]).double(), torch.tensor([1, 0.3, 1, 0, 7]).double()
    zero = torch.zeros(5, dtype=torch.float64)
    a, b = (exact(zero, turn @ torch.diag(v**2) @ turn.T) for v in (s, r))
    assert frechet_distance(a, b) == pytest.approx(float((s - r).square().sum()), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_frechet_agrees_with_scipy_and_torch_fidelity(seed):
    a, b = features(seed), features(seed + 1, count=300)
    ours = frechet_distance(stats(a), stats(b))
    moments = [(f.numpy().mean(0), np.cov(f.numpy().T)) for f in (a, b)]
    (m, c), (n, d) = moments
    root = scipy.linalg.sqrtm(c @ d)
    assert ours == pytest.approx(((m - n) ** 2).sum() + np.trace(c + d - 2 * root.real), rel=1e-6)
    theirs = fid_statistics_to_metric(
        *({"mu": mean, "sigma": covariance} for mean, covariance in moments), verbose=False
    )["frechet_inception_distance"]
    assert ours == pytest.approx(float(theirs), rel=1e-5)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_frechet_is_a_squared_distance(seed, scale, shift):
    a, b = features(seed, 50, 4), features(seed + 1, 60, 4)
    d = frechet_distance(stats(a), stats(b))
    assert frechet_distance(stats(b), stats(a)) == pytest.approx(d, rel=1e-6)
    assert frechet_distance(stats(scale * a + shift), stats(scale * b + shift)) == pytest.approx(
        scale**2 * d, rel=1e-4
    )
    turn = torch.linalg.qr(normal(4, 4, seed))[0]
    assert frechet_distance(stats(a @ turn), stats(b @ turn)) == pytest.approx(d, rel=1e-4)
    assert frechet_distance(stats(a), stats(a)) == pytest.approx(0, abs=1e-6 * float(a.square().sum(1).mean()))


def split(f):
    return [stats(part) for part in torch.split(f, group_sizes(len(f)))]


def test_frechet_estimate_is_the_distance_of_all_groups_together():
    f, reference = features(1), stats(features(2))
    assert frechet_estimate(split(f), reference).value == pytest.approx(frechet_distance(stats(f), reference))


def test_frechet_standard_error_is_the_spread_over_repetitions():
    reference = stats(normal(20_000, 4))
    found = [frechet_estimate(split(normal(500, 4, seed) + 0.3), reference) for seed in range(1, 61)]
    spread = float(np.std([estimate.value for estimate in found], ddof=1))
    told = float(np.median([estimate.std for estimate in found]))
    assert 0.6 < told / spread < 1.6


def test_what_a_frechet_estimate_leaves_out_is_a_group():
    f, reference = features(1, 403), stats(features(2))
    found = frechet_estimate(split(f), reference)
    ends = np.cumsum([0, *group_sizes(403)])
    rest = [torch.cat([f[:a], f[b:]]) for a, b in pairwise(ends)]
    assert found.left_out == pytest.approx([frechet_distance(stats(part), reference) for part in rest])
    assert found.std == pytest.approx(jackknife(found.left_out))


@given(limit=st.floats(-10, 10), slope=st.floats(-1000, 1000), count=st.integers(10, 2000))
def test_a_bias_that_goes_as_one_over_n_is_taken_away(limit, slope, count):
    sizes = group_sizes(count)
    left_out = tuple(limit + slope / (count - size) for size in sizes)
    found = bias_corrected(Estimate(limit + slope / count, 0.5, count, left_out), sizes)
    assert found.value == pytest.approx(limit, abs=1e-9 * (1 + abs(slope)))
    assert found[1:3] == (0.5, count)


def test_frechet_infinity_is_the_jackknife_written_out():
    f, reference = features(1), stats(features(2))
    plain, found = frechet_estimate(split(f), reference), frechet_infinity(split(f), reference)
    assert found.value == pytest.approx(10 * plain.value - 9 * np.mean(plain.left_out))
    pseudo = 10 * plain.value - 9 * np.array(plain.left_out)
    assert found.std == pytest.approx(scipy.stats.sem(pseudo))
    assert found.std == pytest.approx(jackknife(found.left_out))
    assert np.mean(found.left_out) == pytest.approx(found.value)


def test_the_floor_is_a_mean_over_all_splits_into_halves():
    parts = [features(1, 20, 3), features(2, 22, 3), features(3, 21, 3), features(4, 20, 3)]
    wanted = []
    for one, other in (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))):
        a, b = (torch.cat([parts[i] for i in half]) for half in (one, other))
        wanted.append(frechet_distance(stats(a), stats(b)) / (1 / len(a) + 1 / len(b)))
    found = frechet_floor([stats(part) for part in parts])
    assert found.value == pytest.approx(np.mean(wanted))
    assert found.std == pytest.approx(np.std(wanted, ddof=1) / sqrt(3)), (
        "three splits of four parts are orthogonal"
    )
    assert found.samples == 83


def test_a_floor_needs_a_power_of_two_of_parts_and_enough_samples():
    for count in (2, 5, 6):
        with pytest.raises(ValueError, match=rf"^the floor .* 4, 8, 16, ... parts, got {count}$"):
            frechet_floor([stats(features(i, 20)) for i in range(count)])
    with pytest.raises(ValueError, match=r"^the floor .* on 8 features needs more than 16 samples, got 16$"):
        frechet_floor([stats(normal(2, 8, i)) for i in range(8)])
    assert frechet_floor([stats(normal(3, 8, i)) for i in range(8)]).value > 0


@pytest.mark.parametrize(("generated", "real"), [(8, 100), (9, 100), (100, 8), (100, 5)])
def test_too_few_samples_for_a_frechet_distance_are_refused(generated, real):
    with pytest.raises(ValueError, match=rf"on 8 features needs more than 8 .* and {real} real"):
        frechet_estimate(split(normal(generated, 8)), stats(normal(real, 8)))


def test_as_few_samples_as_allowed_are_enough():
    assert frechet_estimate(split(normal(10, 8)), stats(normal(9, 8, 1))).value > 0


@given(count=st.integers(1, 1000))
def test_groups_share_the_samples_evenly(count):
    sizes = group_sizes(count)
    assert sum(sizes) == count
    assert len(sizes) == min(10, count)
    assert max(sizes) - min(sizes) <= 1


# --- two models, and repeats --------------------------------------------------------------------------------


def test_a_difference_on_shared_noise_has_the_error_of_its_differences():
    noise, reference = normal(400, 4), stats(normal(5000, 4, 1))
    a, b = (frechet_estimate(split(scale * noise), reference) for scale in (1.3, 1.25))
    found = difference(a, b)
    assert found.value == a.value - b.value
    assert found.std == pytest.approx(jackknife(np.subtract(a.left_out, b.left_out).tolist()))
    assert found.std < 0.3 * hypot(a.std, b.std)
    assert found.samples == 400
    assert difference(a, a)[:2] == (0, 0)


def test_errors_of_what_shares_no_noise_add_as_squares():
    a, none = Estimate(5.0, 0.3, 100, tuple(map(float, range(10)))), Estimate(3.0, 0.4, 100)
    for other in (none, none._replace(left_out=a.left_out[:9]), none._replace(left_out=a.left_out, samples=90)):
        assert difference(a, other) == (2, pytest.approx(0.5), min(100, other.samples), ())


def test_repeats_are_pooled_by_hand():
    repeats = [Estimate(v, s, 100, tuple(v + s * i for i in range(10))) for v, s in ((1, 0.3), (2, 0.4), (6, 1.2))]
    found, spread = pooled(repeats)
    assert (found.value, found.samples) == (3, 100)
    assert spread == pytest.approx(sqrt(7))
    assert found.left_out == pytest.approx([3 + 1.9 * i / 3 for i in range(10)])
    assert found.std == pytest.approx(jackknife(found.left_out))
    bare = [estimate._replace(left_out=()) for estimate in repeats]
    assert pooled(bare)[0] == (3, pytest.approx(sqrt((0.09 + 0.16 + 1.44) / 3)), 100, ())
    alone, nothing = pooled(bare[:1])
    assert alone == bare[0]
    assert isnan(nothing)


def test_the_difference_of_repeats_is_that_of_their_means():
    reference = stats(normal(5000, 4, 1))
    a, b = (
        [frechet_estimate(split(scale * normal(200, 4, seed)), reference) for seed in (2, 3, 4)]
        for scale in (1.3, 1.25)
    )
    found = difference(pooled(a)[0], pooled(b)[0])
    each = [difference(p, q) for p, q in zip(a, b, strict=True)]
    expected = pooled(each)[0]
    assert found[:3] == pytest.approx(expected[:3])
    assert found.left_out == pytest.approx(expected.left_out)
    assert found.std < 0.5 * hypot(pooled(a)[0].std, pooled(b)[0].std)


# --- points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 8])
def test_sliced_wasserstein_of_a_shift(dims):
    """Each direction sees <theta, shift>, whose mean square is |shift|^2 / D."""
    x, shift = normal(100, dims), torch.linspace(1, 2, dims, dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, directions=5000)
    assert found.value == pytest.approx(float(shift.norm()) / dims**0.5, rel=0.05)
    assert found.std == pytest.approx(0, abs=1e-6)


def test_sliced_wasserstein_in_one_dimension_is_the_distance_of_quantiles():
    x, y = normal(300, 1), 2 * normal(300, 1, 1) + 1
    matched = (np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2
    assert sliced_wasserstein(x, y).value == pytest.approx(np.sqrt(matched.mean()))


@pytest.mark.parametrize(("n", "m"), [(100, 100), (100, 140), (200, 57)])
def test_energy_distance_is_scipy_s_squared_without_its_bias(n, m):
    """scipy's V-statistic counts each point's zero distance to itself."""
    x, y = normal(n, 1), 1.5 * normal(m, 1, 1) + 0.4
    count = min(n, m) // 10 * 10
    x, y = x[:count], y[:count]
    biased = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    within = sum(scipy.spatial.distance.pdist(v.numpy()).mean() for v in (x, y))
    assert energy_distance(normal(n, 1), 1.5 * normal(m, 1, 1) + 0.4).value == pytest.approx(
        biased - within / count
    )


def test_energy_distance_in_the_plane_written_out():
    x, y = normal(50, 2), normal(50, 2, 1) + 1
    cdist, pdist = scipy.spatial.distance.cdist, scipy.spatial.distance.pdist
    wanted = 2 * cdist(x, y).mean() - pdist(x.numpy()).mean() - pdist(y.numpy()).mean()
    assert energy_distance(x, y).value == pytest.approx(wanted)
    assert energy_distance(torch.cat([x, 9 + x]), torch.cat([y, y]), at_most=50).value == pytest.approx(wanted)


def test_energy_distance_does_not_notice_where_both_sets_lie():
    x, y = normal(500, 2, dtype=torch.float32), normal(500, 2, 1, dtype=torch.float32) + 0.5
    there = energy_distance(x + 256, y + 256)
    assert there.value == pytest.approx(energy_distance(x, y).value, rel=1e-3)


@pytest.mark.parametrize("name", POINT_METRICS)
def test_point_metric_is_small_between_equals_and_grows_with_the_gap(name):
    metric, x = POINT_METRICS[name], normal(2000, 2)
    values = [metric(x, normal(2000, 2, 1) + gap).value for gap in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    assert abs(values[0]) < 0.2 * values[1]
    assert metric(normal(2000, 2, 1), x).value == pytest.approx(values[0])


@pytest.mark.parametrize("name", POINT_METRICS)
def test_point_metric_s_standard_error_is_the_spread_over_repetitions(name):
    found = [POINT_METRICS[name](normal(200, 2, 2 * i), normal(200, 2, 2 * i + 1) + 1) for i in range(50)]
    spread = float(np.std([estimate.value for estimate in found], ddof=1))
    told = float(np.median([estimate.std for estimate in found]))
    assert 0.6 < told / spread < 1.6


@pytest.mark.parametrize("name", POINT_METRICS)
def test_too_few_points_are_refused(name):
    with pytest.raises(ValueError, match=r"needs at least \d+ samples, got 9 and 100"):
        POINT_METRICS[name](normal(9, 2), normal(100, 2))


# --- flows --------------------------------------------------------------------------------------------------


def bend(points):
    return straightness(points, uniform_grid(len(points) - 1))


@pytest.mark.parametrize("name", GRIDS)
def test_straightness_does_not_depend_on_the_grid(name):
    grid = GRIDS[name]()(2000)
    points = [torch.tensor([[3.0]], dtype=torch.float64) * t**2 for t in grid]
    assert straightness(points, grid).item() == pytest.approx(3, rel=1e-3)


def test_a_straight_line_at_constant_speed_is_straight():
    x0, x1 = normal(5, 3), normal(5, 3, 1)
    points = [x0 + t * (x1 - x0) for t in torch.linspace(0, 1, 8, dtype=torch.float64)]
    torch.testing.assert_close(bend(points), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("dims", [1, 4])
def test_straightness_of_a_parabola(dims):
    """x_t = a t^2: int |a - 2 a t|^2 dt = a^2 / 3, in each dimension."""
    a = torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None].expand(2, dims)
    points = [a * t**2 for t in torch.linspace(0, 1, 1001, dtype=torch.float64)]
    torch.testing.assert_close(bend(points), a[:, 0] ** 2 / 3, rtol=1e-5, atol=0)


def test_straightness_of_a_half_circle():
    """Radius 1: the speed is pi, the chord 2, and int |chord - v|^2 = pi^2 - 4, over two dimensions."""
    angle = torch.linspace(0, torch.pi, 2001, dtype=torch.float64)
    points = [torch.stack([-a.cos(), a.sin()])[None] for a in angle]
    assert bend(points).item() == pytest.approx((torch.pi**2 - 4) / 2, rel=1e-5)


def test_transport_cost_is_a_mean_over_dimensions():
    x0 = torch.zeros(2, 3, 2, 2)
    x1 = torch.stack([torch.full((3, 2, 2), 2.0), torch.arange(12.0).reshape(3, 2, 2)])
    assert transport_cost(x0, x1).tolist() == pytest.approx([4, 506 / 12])


def test_mean_with_its_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    found = mean_estimate(values)
    assert found.value == 3
    assert found.std == pytest.approx(scipy.stats.sem(values.numpy()))
    assert mean_estimate(torch.tensor([5.0])) == (5, 0, 1, ())
