"""What may be predicted on a path, and how one prediction becomes another."""

import pytest
import torch
from torch import distributions

from fmcore.analytic import mixture_field, mixture_score
from fmcore.flow.paths import PREDICTIONS, Linear, coefficients, convert, ends, interpolate, prediction
from path_examples import MIXTURES, between, each_path, f64, on_path, pairs

pytestmark = pytest.mark.numerics


@each_path
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_ends_and_prediction_are_inverses(path, kind):
    t = between(path, 100)
    x0, x1 = pairs(100, (3,), 1)
    x, u_t = interpolate(path, x0, x1, t)
    c = coefficients(path, t, x)
    value = prediction(kind, c, x0, x1)
    by_hand = {"velocity": u_t, "noise": x0, "data": x1, "score": -x0 / c.s, "v": c.a * x0 - c.s * x1}
    torch.testing.assert_close(value, by_hand[kind])
    for found, wanted in zip(ends(kind, c, x, value), (x0, x1), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@each_path
@pytest.mark.parametrize("source", PREDICTIONS)
def test_conversions_come_back(path, source):
    """From any value, not only one that some pair of ends gave."""
    t = between(path, 50)
    x, value = pairs(50, (3,), 2)
    for target in PREDICTIONS:
        there = convert(path, x, t, value, source=source, target=target)
        back = convert(path, x, t, there, source=target, target=source)
        torch.testing.assert_close(back, value, rtol=1e-8, atol=1e-8)


def posterior_ends(path, x, t):
    """E[x_0 | x_t = x] and E[x_1 | x_t = x] for the 1-D mixture: Bayes' rule by quadrature over x_1."""
    weights, means, stds = MIXTURES[1]
    grid = torch.linspace(-6, 6, 8001, dtype=torch.float64)
    prior = distributions.Normal(means[:, 0], stds).log_prob(grid[:, None]).exp() @ weights
    a, s, _, _ = coefficients(path, t, x)
    mass = prior * torch.softmax(-((x - a * grid) ** 2) / (2 * s**2), 1)
    x1 = (mass @ grid / mass.sum(1))[:, None]
    x0 = ((mass * (x - a * grid) / s).sum(1) / mass.sum(1))[:, None]
    return x0, x1


@each_path
def test_conversions_of_the_velocity_are_posterior_means(path):
    t = between(path, 60)
    x, _ = on_path(path, 1, t)
    x0, x1 = posterior_ends(path, x, t)
    a, s, da, ds = coefficients(path, t, x)
    truth = {"velocity": da * x1 + ds * x0, "noise": x0, "data": x1, "score": -x0 / s, "v": a * x0 - s * x1}
    v = mixture_field(*MIXTURES[1], path)(x, t, None)
    for kind in PREDICTIONS:
        found = convert(path, x, t, v, source="velocity", target=kind)
        torch.testing.assert_close(found, truth[kind], rtol=1e-7, atol=1e-7)
        back = convert(path, x, t, truth[kind], source=kind, target="velocity")
        torch.testing.assert_close(back, v, rtol=1e-7, atol=1e-7)
    score = mixture_score(*MIXTURES[1], path)(x, t, None)
    torch.testing.assert_close(score, truth["score"], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close((x + s**2 * score) / a, x1, rtol=1e-7, atol=1e-7)  # Tweedie


def test_conversion_follows_the_direction_of_time():
    """Half way to data at +3 from nothing, the linear velocity points up, and says data above and noise below."""
    x, t, v = f64(1.5)[:, None], f64(0.5), f64(3.0)[:, None]
    said = {kind: convert(Linear(), x, t, v, source="velocity", target=kind).item() for kind in PREDICTIONS}
    assert said == pytest.approx({"velocity": 3.0, "noise": 0.0, "data": 3.0, "score": 0.0, "v": -1.5})
