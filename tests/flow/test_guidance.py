"""Guidance: fields of a class and of none, extrapolated, against exact ones."""

import pytest
import torch

from fmcore.analytic import gaussian_field, gaussian_flow, mixture_field, mixture_score
from fmcore.flow.fields import Counted, Guidance, guided
from fmcore.flow.paths import Linear, convert
from fmcore.flow.times import uniform_grid
from fmcore.ode.solvers import SOLVERS, integrate
from path_examples import f64, gen, noise

pytestmark = pytest.mark.numerics

CENTRES = f64(2.0, 0.0, 0.0, 2.0, 0.5, -0.5).reshape(3, 2)  # two classes and the null one
WIDTHS = f64(0.5, 0.5, 0.8)
NULL = 2


def by_class(x, t, label):
    """Of each class the exact field to its Gaussian."""
    every = torch.stack(
        [mixture_field(f64(1.0), CENTRES[k : k + 1], WIDTHS[k : k + 1])(x, t, None) for k in range(3)]
    )
    return every[label, torch.arange(len(x))]


def at_random(count=60):
    return noise(count, 2), torch.rand(count, generator=gen(1), dtype=torch.float64), torch.arange(count) % 2


def null_of(label):
    return torch.full_like(label, NULL)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_guidance_is_linear_in_its_scale(scale):
    x, t, label = at_random()
    of_label, of_null = by_class(x, t, label), by_class(x, t, null_of(label))
    v = guided(by_class, Guidance(scale), NULL)(x, t, label)
    torch.testing.assert_close(v, of_null + scale * (of_label - of_null))
    torch.testing.assert_close(v, scale * of_label + (1 - scale) * of_null)


def test_guidance_is_that_of_the_scores():
    """grad log p(x) + scale grad log p(label | x), the latter by Bayes' rule (Ho and Salimans, section 3.2)."""
    x, t, label = at_random()
    t = 0.02 + 0.96 * t
    scores = [mixture_score(f64(1.0), CENTRES[k : k + 1], WIDTHS[k : k + 1])(x, t, None) for k in range(3)]
    of_label = torch.where((label == 0)[:, None], scores[0], scores[1])
    wanted = scores[NULL] + 3.0 * (of_label - scores[NULL])
    v = guided(by_class, Guidance(3.0), NULL)(x, t, label)
    found = convert(Linear(), x, t, v, source="velocity", target="score")
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guided_gaussians_of_one_width_end_at_the_extrapolated_mean(scale):
    """Fields of equal widths differ by a shift alone, so that guidance moves the mean, exactly."""
    start, width = (f64(0.0, 0.0), f64(1.0, 1.0)), f64(0.5, 0.5)

    def field(x, t, label):
        return gaussian_field(*start, CENTRES[label], width)(x, t, None)

    x0, label = noise(8, 2), torch.arange(8) % 2
    end = integrate(guided(field, Guidance(scale), NULL), x0, uniform_grid(32), SOLVERS["rk4"], label)
    centre = CENTRES[NULL] + scale * (CENTRES[label] - CENTRES[NULL])
    exact = gaussian_flow(*start, centre, width, x0, torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(end, exact, rtol=0, atol=1e-5)


def test_scale_one_is_the_conditional_field_at_the_cost_of_one():
    x, t, label = at_random()
    counted = Counted(by_class)
    assert torch.equal(guided(counted, Guidance(1.0), NULL)(x, t, label), by_class(x, t, label))
    assert counted.nfe == 1


def test_scale_zero_is_the_null_field():
    x, t, label = at_random()
    v = guided(by_class, Guidance(0.0), NULL)(x, t, label)
    torch.testing.assert_close(v, by_class(x, t, null_of(label)))


def test_interval_holds_for_each_sample():
    x, _, label = at_random(6)
    t = f64(0.0, 0.25, 0.5, 0.75, 0.75 + 1e-9, 1.0)
    v = guided(by_class, Guidance(3.0, 0.25, 0.75), NULL)(x, t, label)
    whole = guided(by_class, Guidance(3.0), NULL)(x, t, label)
    inside = torch.tensor([False, True, True, True, False, False])
    assert torch.equal(v[inside], whole[inside])
    assert torch.equal(v[~inside], by_class(x, t, label)[~inside])
    assert ((v - by_class(x, t, label))[inside].abs().amax(1) > 1e-3).all()


def test_evaluations_are_those_of_the_network():
    x, _, label = at_random(4)
    for t, cost in ((0.1, 1), (0.25, 2), (0.5, 2), (0.75, 2), (0.9, 1)):
        counted = Counted(by_class)
        guided(counted, Guidance(3.0, 0.25, 0.75), NULL)(x, f64(t).expand(4), label)
        assert counted.nfe == cost
    counted = Counted(by_class)
    guided(counted, Guidance(3.0, 0.25, 0.75), NULL)(x, f64(0.1, 0.1, 0.5, 0.1), label)
    assert counted.nfe == 2  # one sample inside is enough
    counted = Counted(by_class)
    integrate(guided(counted, Guidance(3.0), NULL), x, uniform_grid(5), SOLVERS["heun"], label)
    assert counted.nfe == 2 * (2 * 5 - 1)


def test_guided_images_broadcast_over_every_dimension():
    x, t, label = torch.ones(2, 3, 4, 4), torch.tensor([0.1, 0.9]), torch.tensor([0, 0])
    v = guided(lambda x, t, label: x * (2.0 + (label == 0).view(-1, 1, 1, 1)), Guidance(2.0, 0.5), 1)(x, t, label)
    assert torch.equal(v[0], 3 * x[0])
    assert torch.equal(v[1], 4 * x[1])


def test_guidance_wants_labels():
    x, t, _ = at_random()
    with pytest.raises(ValueError, match="label for each sample, got none"):
        guided(by_class, Guidance(2.0), NULL)(x, t, None)


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": -0.1},
        {"scale": 1.0, "start": -0.1},
        {"scale": 1.0, "stop": 1.1},
        {"scale": 1.0, "start": 0.5, "stop": 0.5},
        {"scale": 1.0, "start": 0.7, "stop": 0.3},
        {"scale": 1.0, "start": float("nan")},
    ],
)
def test_guidance_that_means_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="scale >= 0 and 0 <= start < stop <= 1"):
        Guidance(**bad)
