"""Scores of neighbours, copies and classes against torch-fidelity, naive loops and closed forms."""

from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric, prc_featuresdict_to_metric

import fmcore.score.fidelity as fidelity
from feature_samples import draws, features, normal, quick, values
from fmcore.score.estimates import group_sizes
from fmcore.score.fidelity import (
    FEATURE_METRICS,
    classes,
    density_coverage,
    inception_score,
    kid,
    memorisation,
    nearest,
    precision_recall,
)


def every(x, y, chunk=500):
    """All the scores made of neighbours."""
    return [*precision_recall(x, y, chunk=chunk), *density_coverage(x, y, chunk=chunk)]


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_are_torch_fidelity_s(neighbours):
    x, y = features(1, 170) + 0.2, features(2)
    told = {"prc_neighborhood": neighbours, "verbose": False}
    precision, recall = precision_recall(x, y, neighbours=neighbours)
    theirs = prc_featuresdict_to_metric({"a": x}, {"a": y}, "a", **told)
    assert precision.value == pytest.approx(theirs["precision"], rel=1e-6)  # its means are in single precision
    assert recall.value == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0 < recall.value < 1 > precision.value > 0
    assert precision.samples == recall.samples == 170
    # Its distances in single precision may put a point or two on the other side.
    rough = prc_features_to_metric(x.float(), y.float(), **told)
    assert precision.value == pytest.approx(rough["precision"], abs=2 / 150)


# --- neighbours ---------------------------------------------------------------------------------------------


def naive(x, y, k_recall=3, k_cover=5):
    """Precision, recall, density and coverage with a loop over every pair."""

    def radius(i, points, k):
        return sorted(float((points[i] - q).norm()) for j, q in enumerate(points) if j != i)[k - 1]

    def inside(points, centres, k, *, closed):
        radii = [radius(j, centres, k) for j in range(len(centres))]
        distance = [[float((p - c).norm()) for c in centres] for p in points]
        return np.array(
            [[d < r or (closed and d == r) for d, r in zip(row, radii, strict=True)] for row in distance]
        )

    among = [inside(a, b, k_recall, closed=True).any(1).mean() for a, b in ((x, y), (y, x))]
    held = inside(x, y, k_cover, closed=False)
    return [*among, held.sum() / (k_cover * len(x)), held.any(0).mean()]


@settings(max_examples=3)
@given(seed=st.integers(0, 1000), fake=st.integers(60, 75), real=st.integers(60, 75), shift=st.floats(0, 1))
def test_neighbours_are_those_of_a_naive_loop(seed, fake, real, shift):
    x, y = features(seed, fake, 3) + shift, features(seed + 1, real, 3)
    assert values(every(x, y)) == pytest.approx(naive(x, y))


def test_what_the_jackknife_leaves_out_is_gone_from_both_sets():
    x, y = (fidelity._shuffled(part) for part in (features(1, 73, 3), features(2, 66, 3)))
    rest = [naive(*(part[torch.arange(len(part)) % 10 != g] for part in (x, y))) for g in range(10)]
    for estimate, left_out in zip(
        every(features(1, 73, 3), features(2, 66, 3)), zip(*rest, strict=True), strict=True
    ):
        assert estimate.left_out == pytest.approx(left_out)
        assert estimate.std == pytest.approx(sqrt(9 * np.var(left_out)))


def test_a_copy_of_the_data_is_perfect_and_what_is_far_away_worthless():
    x = features(1)
    assert values(every(x, x)) == [1, 1, pytest.approx(1), 1]
    assert values(every(x[torch.randperm(150)], x)) == [1, 1, pytest.approx(1), 1]
    assert every(x + 1000, x) == [(0, 0, 150, (0,) * 10)] * 4


def test_the_rim_of_a_ball_counts_for_precision_and_not_for_density():
    line, beyond = torch.arange(60.0)[:, None], torch.full((60, 1), 60.0)
    assert precision_recall(beyond, line, neighbours=1)[0].value == 1
    assert values(density_coverage(beyond, line, neighbours=1)) == [0, 0]


def test_single_precision_features_far_from_the_origin_keep_their_distances():
    x, y = ((features(seed) + 3000).float() for seed in (1, 2))
    assert every(x, y) == every(x.double(), y.double())


def modes(count, seed, offset):
    """Two clusters of equal size far apart, or one of them twice."""
    return normal(count, 4, seed) + offset * (torch.arange(count) % 2)[:, None]


def test_dropping_a_mode_halves_recall_and_coverage_only():
    whole, half = every(modes(400, 1, 20), modes(400, 2, 20)), every(modes(400, 1, 0), modes(400, 2, 20))
    assert values(half)[1] / values(whole)[1] == pytest.approx(0.5, abs=0.05)
    assert values(half)[3] / values(whole)[3] == pytest.approx(0.5, abs=0.05)
    assert values(half)[0] == pytest.approx(values(whole)[0], abs=0.05)
    assert values(half)[2] == pytest.approx(values(whole)[2], abs=0.2)


def test_making_half_the_samples_of_nothing_halves_precision_and_density_only():
    whole, half = every(modes(400, 1, 0), modes(400, 2, 0)), every(modes(400, 1, 20), modes(400, 2, 0))
    assert values(half)[0] / values(whole)[0] == pytest.approx(0.5, abs=0.05)
    assert values(half)[2] / values(whole)[2] == pytest.approx(0.5, abs=0.1)
    assert values(half)[3] > 0.9 * values(whole)[3]


@pytest.mark.parametrize(("fake", "real"), [(150, 150), (80, 240)])
def test_density_and_coverage_of_one_distribution_are_known(fake, real):
    """A ball has the k-th of all others on its rim; it is empty when the k nearest of everyone are all real."""
    empty = np.prod([(real - 1 - i) / (real + fake - 1 - i) for i in range(5)])
    found = np.array([values(density_coverage(x, y)) for x, y in draws(0.0, 1.0, 40, real, fake)])
    error = found.std(0, ddof=1) / sqrt(40)
    assert abs(found.mean(0) - (1, 1 - empty)) == pytest.approx(0, abs=5 * error.max())
    assert (abs(found.mean(0) - (1, 1 - empty)) < 5 * error).all()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_errors_of_neighbour_scores_cover_their_spread(shift):
    """A jackknife errs on the side of caution here: some 1.1 to 2.3 times the spread over repetitions."""
    found = np.array([[each[:2] for each in every(x, y)] for x, y in draws(shift, 1.0, 60, real=200)])
    value, told = found[..., 0], found[..., 1]
    ratio = np.sqrt((told**2).mean(0)) / value.std(0, ddof=1)
    assert (ratio > 0.8).all()
    assert (ratio < 2.6).all()
    assert ((abs(value - value.mean(0)) <= 2 * told).mean(0) >= 0.85).all()


# --- copies of the data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [1, 7, 200])
def test_the_nearest_row_is_that_of_a_loop(real, monkeypatch):
    monkeypatch.setattr(fidelity, "CHUNK", 17)
    x, y = features(1, 60), features(2, real)
    distance, row = nearest(x, y)
    every_distance = np.array([[float((a - b).norm()) for b in y] for a in x])
    assert row.tolist() == every_distance.argmin(1).tolist()
    np.testing.assert_allclose(distance, every_distance.min(1), rtol=1e-6)


def test_a_copy_is_at_no_distance_however_far_from_the_origin():
    y = (features(1) + 3000).float()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    distance, row = nearest(y[order], y)
    assert torch.equal(row, order)
    assert distance.tolist() == [0] * 150


def test_memorisation_leaves_rows_out_of_both_sets():
    x, y = features(1, 63), features(2, 57)
    xs, ys = (fidelity._shuffled(part) for part in (x, y))

    def loop(x, y):
        to_data = [min(float((a - b).norm()) for b in y) for a in x]
        data = [min(float((a - b).norm()) for j, b in enumerate(y) if i != j) for i, a in enumerate(y)]
        return np.median(to_data) / np.median(data)

    found = memorisation(x, y)
    assert found.value == pytest.approx(loop(x, y), rel=1e-6)
    rest = [loop(*(part[torch.arange(len(part)) % 10 != g] for part in (xs, ys))) for g in range(10)]
    assert found.left_out == pytest.approx(rest, rel=1e-6)
    assert found.std == pytest.approx(sqrt(9 * np.var(rest)))
    assert found.samples == 63


def test_memorisation_knows_copies_from_new_samples():
    data, new = normal(2000, 8), normal(500, 8, 1)
    copies = data[:500] + 0.02 * new
    half = torch.cat([copies[:250], new[:250]])
    assert memorisation(data[:500], data).value == 0
    assert memorisation(copies, data).value < 0.1 < memorisation(half, data).value < 0.9
    assert memorisation(new, data).value == pytest.approx(1, abs=0.05)
    assert memorisation(new + 5, data).value > 3
    a, b = memorisation(10 * new + 7, 10 * data + 7), memorisation(new, data)
    assert a.value == pytest.approx(b.value, rel=1e-5), "it has no units"


def test_the_data_is_compared_with_itself_on_some_rows(monkeypatch):
    data, new = normal(2000, 8), normal(500, 8, 1)
    whole = memorisation(new, data)
    monkeypatch.setattr(fidelity, "COMPARED", 500)
    assert memorisation(new, data).value == pytest.approx(whole.value, rel=0.03)


def test_data_that_comes_twice_says_nothing_of_copies():
    with pytest.raises(
        ValueError, match=r"^memorisation: half of the 120 rows of the reference or more come twice$"
    ):
        memorisation(features(1), features(2, 60).repeat(2, 1))


# --- the inception score ------------------------------------------------------------------------------------


def score_of(logits):
    return inception_score([classes(part) for part in torch.split(logits, group_sizes(len(logits)))])


@pytest.mark.parametrize("count", [100, 1003, 1007])
def test_inception_score_is_torch_fidelity_s(count):
    logits = 3 * features(1, count).float()
    found, theirs = score_of(logits), isc_features_to_metric(logits, splits=10, shuffle=False)
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(theirs["inception_score_std"] / 3, rel=1e-9), "the error of a mean of ten"
    assert found.samples == count


def test_inception_score_is_the_number_of_classes_made_with_certainty():
    logits = 1000 * torch.eye(10).repeat(50, 1)
    assert score_of(logits).value == pytest.approx(10)
    assert score_of(logits[torch.arange(500) % 10 < 5]).value == pytest.approx(5)
    assert score_of(torch.zeros(100, 10)).value == pytest.approx(1)
    assert score_of(logits).std == pytest.approx(0, abs=1e-9)


# --- what must not matter -----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(chunk=st.integers(1, 200))
def test_neighbour_scores_are_the_same_whatever_the_chunk(chunk):
    x, y = features(1).float(), features(2, 120).float()
    assert every(x, y, chunk) == every(x, y)
    copy = every(x, x, chunk)  # every rim is touched
    assert copy == every(x, x)


def test_the_order_of_rows_does_not_change_neighbour_scores():
    x, y = features(1), features(2)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert values(every(x[order], y[order.flip(0)])) == values(every(x, y))


def test_rows_that_come_class_by_class_get_the_error_of_rows_that_do_not():
    """Ten classes in turn: a group of every tenth row would be a class."""
    turns = [normal(200, 4, seed) + 5 * (torch.arange(200) % 10)[:, None] for seed in (1, 2)]
    loose = [part[torch.randperm(200, generator=torch.Generator().manual_seed(0))] for part in turns]
    for a, b in zip([quick(*turns), *every(*turns)], [quick(*loose), *every(*loose)], strict=True):
        assert 0.5 < a.std / b.std < 2


@given(turn=st.integers(0, 100), scale=st.floats(0.01, 100))
@settings(max_examples=5)
def test_neighbour_scores_know_no_units_and_no_direction(turn, scale):
    x, y = features(1, 80), features(2, 80)
    q = scale * torch.linalg.qr(normal(6, 6, turn))[0]
    assert values(every(x @ q, y @ q)) == values(every(x, y))


def test_scores_by_name_are_deterministic_and_silent(capfd):
    x, y = features(1, 1010, 3).half(), features(2, 1010, 3).float()
    torch.manual_seed(0)
    names = []
    for metric in FEATURE_METRICS.values():
        first = metric(x, y[:200], 5)
        torch.randn(7)
        np.random.rand(7)
        assert metric(x, y[:200], 5) == first
        names += first
    assert names == ["kid", "precision", "recall", "density", "coverage"]
    assert kid(x, y[:200], seed=5) == FEATURE_METRICS["kid"](x, y[:200], 5)["kid"]
    assert capfd.readouterr() == ("", "")


# --- bad input ----------------------------------------------------------------------------------------------

EVERY_METRIC = {**FEATURE_METRICS, "memorisation": lambda x, y, _: {"memorisation": memorisation(x, y)}}


@pytest.mark.parametrize("metric", EVERY_METRIC.values(), ids=EVERY_METRIC)
def test_bad_input_is_refused_in_one_line(metric):
    x = features(1, 60)
    with pytest.raises(ValueError, match=r"^features have 6 dimensions, the reference has 5$"):
        metric(x, x[:, :5], 0)
    for a, b, got in ((x[:19], x, "19 and 60"), (x, x[:1], "60 and 1"), (x[:0], x, "0 and 60")):
        with pytest.raises(ValueError, match=rf"^expected at least \d0 samples of each, got {got}$"):
            metric(a, b, 0)
    bad = x.clone()
    bad[[7, 9], 2] = torch.tensor([torch.nan, torch.inf]).double()
    for name, a, b in (("features", bad, x), ("reference", x, bad)):
        with pytest.raises(ValueError, match=rf"^{name}: 2 of 60 rows are not finite, the first is row 7$"):
            metric(a, b, 0)
    assert all(estimate.samples == 60 for estimate in metric(x, x, 0).values())
