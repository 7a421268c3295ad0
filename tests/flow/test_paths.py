"""Every path joins its ends, and its velocities are right.

A path added to `PATHS` is tested by all of this, and by the other tests of paths, as soon as it is there.
"""

from math import exp, pi

import pytest
import torch
from hypothesis import given
from scipy import integrate as quadrature

from fmcore.flow.paths import (
    LARGEST_SNR,
    VE,
    VP,
    Cosine,
    Discrete,
    Linear,
    Polynomial,
    coefficients,
    expand,
    half_log_snr,
    interpolate,
)
from path_examples import BATCH, DDPM, DIMS, EXAMPLES, SEED, each_path, f64, gen, levels, naming, pairs, times

pytestmark = pytest.mark.numerics


@each_path
def test_span_runs_from_almost_noise_to_almost_data(path):
    """|x_t / s - x_0| = (a / s) |x_1| at the start, |x_t / a - x_1| = (s / a) |x_0| at the end: both small."""
    low, high = levels(path)
    assert low <= -3.9  # the coarsest: VE's 50
    assert high >= (2.3 if path == Linear(sigma_min=0.1) else 4.6)  # of defaults, VE's 0.01 and DDPM's 1e-4
    x0, x1 = pairs(50, (3,), 0)
    for t, wanted, scale, gap in (
        (path.span[0], x0, "s", exp(low) * x1.abs().max()),
        (path.span[1], x1, "a", exp(-high) * x0.abs().max()),
    ):
        at = f64(t).expand(50)
        x_t, _ = interpolate(path, x0, x1, at)
        found = x_t / getattr(coefficients(path, at, x0), scale)
        assert (found - wanted).abs().max() <= gap * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("path", [Linear(), Cosine(), Polynomial(), Polynomial(3.0)], ids=naming)
def test_some_paths_begin_at_x0_and_end_at_x1_exactly(path):
    x0, x1 = pairs(50, (3,), 0)
    for t, wanted in ((0.0, x0), (1.0, x1)):
        torch.testing.assert_close(interpolate(path, x0, x1, f64(t).expand(50))[0], wanted, rtol=0, atol=1e-15)


@each_path
def test_noise_falls_while_data_rises(path):
    t = torch.linspace(*path.span, 1000, dtype=torch.float64)
    a, s, _, _ = path(t)
    assert (a.diff() >= 0).all()
    assert (s.diff() <= 0).all()
    assert (half_log_snr(path, t).diff() > 0).all()
    assert a.min() >= 0
    assert s.min() >= 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch.func's own use
@each_path
@given(batch=BATCH, dims=DIMS, seed=SEED)
def test_velocity_is_the_derivative(path, batch, dims, seed):
    x0, x1 = pairs(batch, dims, seed)
    t = times(path, batch, seed)  # the velocity of a table jumps at its knots, which random times miss
    _, u_t = interpolate(path, x0, x1, t)
    _, derivative = torch.func.jvp(lambda t: interpolate(path, x0, x1, t)[0], (t,), (torch.ones_like(t),))
    assert u_t.shape == x0.shape
    torch.testing.assert_close(u_t, derivative, rtol=1e-10, atol=1e-10)


@each_path
@given(batch=BATCH, dims=DIMS, seed=SEED)
def test_each_sample_has_its_own_time(path, batch, dims, seed):
    x0, x1 = pairs(batch, dims, seed)
    t = times(path, batch, seed)
    together = interpolate(path, x0, x1, t)
    alone = [interpolate(path, x0[i : i + 1], x1[i : i + 1], t[i : i + 1]) for i in range(batch)]
    for joined, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(joined, torch.cat(parts))


@given(batch=BATCH, dims=DIMS)
def test_expand_lines_time_up_with_the_batch(batch, dims):
    t = torch.arange(batch, dtype=torch.float32)
    wide = (expand(t, torch.zeros(batch, *dims)) + torch.zeros(batch, *dims)).reshape(batch, -1)
    assert torch.equal(wide, t[:, None].expand_as(wide))


@each_path
@given(seed=SEED)
def test_time_at_inverts_half_log_snr(path, seed):
    low, high = path.span
    t = low + (high - low) * torch.rand(50, generator=gen(seed), dtype=torch.float64)
    t[:2] = f64(low, high)
    torch.testing.assert_close(path.time_at(half_log_snr(path, t)), t, rtol=0, atol=1e-6)
    bottom, top = levels(path)
    level = bottom + (top - bottom) * torch.rand(50, generator=gen(seed), dtype=torch.float64)
    level = level[level.abs() < 10]  # beyond it 1 - t has lost its digits
    torch.testing.assert_close(half_log_snr(path, path.time_at(level)), level, rtol=0, atol=1e-6)


@each_path
def test_half_log_snr_is_finite_at_both_ends(path):
    for dtype in (torch.float32, torch.float64):
        level = half_log_snr(path, torch.tensor([0.0, 1.0], dtype=dtype))
        assert level.abs().max() <= LARGEST_SNR
        assert level[0] < -3 < 2 < level[1]


@each_path
def test_coefficients_keep_the_dtype_and_shape_of_time(path):
    for dtype in (torch.float32, torch.float64):
        t = times(path, 7).to(dtype)
        assert {(c.dtype, c.shape) for c in path(t)} == {(dtype, t.shape)}
        for value, wanted in zip(path(t), path(t.double()), strict=True):
            torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-4)


def test_linear_by_hand():
    x_t, u_t = interpolate(Linear(), torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.25]))
    assert (x_t.item(), u_t.item()) == (4.0, 8.0)
    x_t, u_t = interpolate(Linear(sigma_min=0.5), f64(2.0)[:, None], f64(10.0)[:, None], f64(0.5))
    assert (x_t.item(), u_t.item()) == (6.5, 9.0)


def test_cosine_by_hand():
    """A quarter of the circle: at its middle both are sqrt(1/2), moving at pi/2 sqrt(1/2)."""
    a, s, da, ds = (value.item() for value in Cosine()(f64(0.5)))
    assert (a, s, da, ds) == pytest.approx((0.5**0.5, 0.5**0.5, pi / 2 * 0.5**0.5, -pi / 2 * 0.5**0.5))


def test_polynomial_by_hand():
    assert [value.item() for value in Polynomial(3.0)(f64(0.5))] == [0.125, 0.875, 0.75, -0.75]
    t = times(Linear(), 20)
    for one, other in zip(Polynomial(1.0)(t), Linear()(t), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("path", [p for p in EXAMPLES if isinstance(p, VP)], ids=naming)
def test_vp_is_the_diffusion_of_its_betas(path):
    """Song et al., eq. 29, in diffusion's time tau = 1 - t: d log a = -beta dtau / 2, a^2 + s^2 = 1."""
    for t in (0.0, 0.3, 0.9, 0.999):
        total, _ = quadrature.quad(
            lambda tau: path.beta_min + tau * (path.beta_max - path.beta_min), 0, 1 - t, epsabs=1e-14
        )
        a, s, _, _ = (value.item() for value in path(f64(t)))
        assert a == pytest.approx(exp(-total / 2), rel=1e-12)
        assert s == pytest.approx((1 - exp(-total)) ** 0.5, rel=1e-9)


def test_ve_is_a_geometric_series():
    s = VE(sigma_min=0.01, sigma_max=100.0)(f64(0.0, 0.25, 0.5, 0.75, 1.0)).s
    torch.testing.assert_close(s, f64(100.0, 10.0, 1.0, 0.1, 0.01))


def test_discrete_passes_through_its_table():
    """Step 0 of the table, the least noise, is at t = 1; the last step, the most, at t = 0."""
    t = 1 - torch.arange(1000, dtype=torch.float64) / 999
    a, s, _, _ = Discrete(DDPM)(t)
    torch.testing.assert_close(a**2, f64(*DDPM), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(s**2, 1 - f64(*DDPM), rtol=1e-9, atol=1e-12)


def test_discrete_has_the_table_of_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(1000).alphas_cumprod.double()  # float32 throughout
    torch.testing.assert_close(f64(*DDPM), theirs, rtol=1e-4, atol=0)


def test_discrete_approximates_the_vp_path_it_discretises():
    """DDPM's beta_i = 1e-4 .. 0.02 are VP's beta / 1000 (Song et al., appendix B), and log(1 - beta_i) is -beta_i
    but for beta_i^2 / 2, which makes 0.033 of log a in all. They part at the data, where the table keeps 1e-4.
    """
    t = torch.linspace(0, 0.9, 50, dtype=torch.float64)
    gap = half_log_snr(Discrete(DDPM), t) - half_log_snr(VP(), t)
    assert gap.abs().max() < 0.04


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Linear(sigma_min=1.0), "0 <= sigma_min < 1, got 1"),
        (lambda: Linear(sigma_min=-0.1), "sigma_min"),
        (lambda: Polynomial(power=0.5), "power >= 1, got 0.5"),
        (lambda: VP(beta_min=0.0), "0 < beta_min <= beta_max, got 0"),
        (lambda: VP(beta_min=2.0, beta_max=1.0), "beta_min"),
        (lambda: VE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: VE(sigma_min=2.0, sigma_max=2.0), "sigma_min"),
        (lambda: Discrete((0.5,)), "at least two"),
        (lambda: Discrete(DDPM[::-1]), "fall"),
        (lambda: Discrete((1.0, 0.5)), r"inside \(0, 1\)"),
        (lambda: Discrete((0.5, 0.0)), r"inside \(0, 1\)"),
    ],
)
def test_parameters_that_make_no_path_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
