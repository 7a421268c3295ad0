"""Paths against those of flow_matching and torchcfm."""

from math import cosh, exp, log

import pytest
import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, PolynomialConvexScheduler, VPScheduler
from torchcfm import ConditionalFlowMatcher, TargetConditionalFlowMatcher, VariancePreservingConditionalFlowMatcher

from fmcore.flow.paths import VE, VP, Cosine, Linear, Polynomial, convert, half_log_snr, interpolate
from path_examples import between, f64, naming, pairs, times

pytestmark = pytest.mark.numerics

SCHEDULERS = [
    (Linear(), CondOTScheduler()),
    (Polynomial(2.0), PolynomialConvexScheduler(2.0)),
    (Polynomial(3.0), PolynomialConvexScheduler(3.0)),
    (VP(), VPScheduler()),
    (VP(0.5, 20.0), VPScheduler(0.5, 20.0)),
    (Cosine(), CosineScheduler()),
]
each_scheduler = pytest.mark.parametrize(
    ("path", "scheduler"), SCHEDULERS, ids=[naming(path) for path, _ in SCHEDULERS]
)


@each_scheduler
def test_coefficients_are_those_of_flow_matching(path, scheduler):
    t = times(path, 200)
    theirs = scheduler(t)
    wanted = (theirs.alpha_t, theirs.sigma_t, theirs.d_alpha_t, theirs.d_sigma_t)
    for ours, other in zip(path(t), wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
    x0, x1 = pairs(200, (3,), 9)
    sample = AffineProbPath(scheduler).sample(x_0=x0, x_1=x1, t=t)
    x_t, u_t = interpolate(path, x0, x1, t)
    torch.testing.assert_close(x_t, sample.x_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(u_t, sample.dx_t, rtol=1e-9, atol=1e-9)


@each_scheduler
def test_time_at_is_that_of_flow_matching(path, scheduler):
    """Theirs takes a / s itself; at the far ends it cancels (VP's 1 - exp(-T) and log) where ours does not."""
    level = torch.linspace(-4, 4, 81, dtype=torch.float64)
    torch.testing.assert_close(path.time_at(level), scheduler.snr_inverse(level.exp()), rtol=0, atol=1e-9)


PEER_KINDS = {"velocity": "velocity", "noise": "epsilon", "data": "target"}


@each_scheduler
@pytest.mark.parametrize("source", PEER_KINDS)
@pytest.mark.parametrize("target", PEER_KINDS)
def test_conversions_are_those_of_flow_matching(path, scheduler, source, target):
    if source == target:
        return
    t = between(path, 60)
    x, value = pairs(60, (3,), 10)
    method = getattr(AffineProbPath(scheduler), f"{PEER_KINDS[source]}_to_{PEER_KINDS[target]}")
    # They name their argument after the kind and expect a time that broadcasts.
    theirs = method(**{PEER_KINDS[source].replace("target", "x_1"): value}, x_t=x, t=t[:, None])
    ours = convert(path, x, t, value, source=source, target=target)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("path", "matcher"),
    [
        (Linear(), ConditionalFlowMatcher(sigma=0.0)),
        (Linear(sigma_min=0.1), TargetConditionalFlowMatcher(sigma=0.1)),
        (Cosine(), VariancePreservingConditionalFlowMatcher(sigma=0.0)),
    ],
    ids=["linear", "linear-sigma", "cosine"],
)
def test_points_and_velocities_are_those_of_torchcfm(path, matcher):
    """The target matcher ignores x_0 and draws its own; that noise is the x_0 here."""
    x0, x1 = pairs(200, (3, 2), 11)
    t = times(path, 200)
    x_t, u_t = interpolate(path, x0, x1, t)
    theirs = matcher.sample_xt(x0, x1, t, x0)
    torch.testing.assert_close(x_t, theirs)
    torch.testing.assert_close(u_t, matcher.compute_conditional_flow(x0, x1, t, theirs))


def test_log_snr_of_the_linear_path_is_a_logit():
    t = times(Linear(), 50)
    torch.testing.assert_close(half_log_snr(Linear(), t), torch.logit(t))
    assert half_log_snr(VE(), f64(0.0)).item() == pytest.approx(-log(50))
    assert half_log_snr(Cosine(), f64(0.5)).item() == pytest.approx(0, abs=1e-12)
    level = f64(1.3)
    assert Cosine()(Cosine().time_at(level)).s.item() == pytest.approx((exp(-1.3) / (2 * cosh(1.3))) ** 0.5)
