"""Every path joins its ends, its velocities and conversions are right, and its exact fields carry its marginals.

A path added to `PATHS` is tested by all of this as soon as it is there.
"""

from math import cosh, exp, log, pi

import pytest
import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import (
    CondOTScheduler,
    CosineScheduler,
    PolynomialConvexScheduler,
    VPScheduler,
)
from hypothesis import given
from scipy import integrate as quadrature
from torch import distributions
from torchcfm import (
    ConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)

from fmcore.analytic import atoms_field, mixture_field, mixture_score, sample_mixture
from fmcore.flow.couplings import Pairs
from fmcore.flow.losses import Squared, flow_matching_loss
from fmcore.flow.paths import (
    LARGEST_SNR,
    PREDICTIONS,
    VE,
    VP,
    Cosine,
    Discrete,
    Linear,
    Polynomial,
    coefficients,
    convert,
    ends,
    expand,
    half_log_snr,
    interpolate,
    prediction,
)
from fmcore.flow.times import uniform_grid
from fmcore.ode.solvers import SOLVERS, integrate
from path_examples import (
    BATCH,
    DDPM,
    DIMS,
    EXAMPLES,
    MIXTURES,
    SEED,
    between,
    derivative,
    each_path,
    f64,
    gen,
    levels,
    naming,
    on_path,
    pairs,
    times,
)

pytestmark = pytest.mark.numerics


# The path itself


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


# What may be predicted on it


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


# Its exact marginals and fields


def log_density(path, x, t):
    """log p_t(x) of the path from noise to the mixture, from torch's own distributions."""
    weights, means, stds = MIXTURES[x.shape[1]]
    a, s, _, _ = path(t)
    spread = (s[:, None] ** 2 + a[:, None] ** 2 * stds**2).sqrt()
    parts = distributions.Normal(a[:, None, None] * means, spread[:, :, None].expand(-1, -1, x.shape[1]))
    chosen = distributions.Categorical(weights.expand(len(x), -1))
    return distributions.MixtureSameFamily(chosen, distributions.Independent(parts, 1)).log_prob(x)


@each_path
@pytest.mark.parametrize("dims", MIXTURES)
def test_score_is_the_gradient_of_the_log_density(path, dims):
    t = times(path, 100)
    x = on_path(path, dims, t)[0].requires_grad_()
    score = mixture_score(*MIXTURES[dims], path)(x, t, None)
    torch.testing.assert_close(score, derivative(log_density(path, x, t), x), rtol=1e-9, atol=1e-9)


@each_path
@pytest.mark.parametrize("dims", MIXTURES)
def test_marginals_and_field_satisfy_the_continuity_equation(path, dims):
    """d/dt log p + div v + v . grad log p = 0, everything by automatic differentiation."""
    t = times(path, 100).requires_grad_()
    x = on_path(path, dims, t.detach())[0].requires_grad_()
    density = log_density(path, x, t)
    v = mixture_field(*MIXTURES[dims], path)(x, t, None)
    divergence = sum(derivative(v[:, i], x)[:, i] for i in range(dims))
    carried = divergence + (v * derivative(density, x)).sum(1)
    change = derivative(density, t)
    torch.testing.assert_close(carried, -change, rtol=1e-8, atol=1e-8)
    assert change.abs().mean() > 0.1


@each_path
def test_field_is_the_posterior_average_over_atoms(path):
    atoms = f64(-2.0, 0.0, 1.0, 1.5, 2.0, -1.0).reshape(3, 2)
    t = between(path, 40)
    x = 1.5 * path(t).s[:, None] * pairs(40, (2,), 3)[0]
    found = atoms_field(atoms, path)(x, t, None)
    a, s, da, ds = path(t)
    for i in range(40):
        noise = [(x[i] - a[i] * atom) / s[i] for atom in atoms]  # what must have been x_0 with that atom as x_1
        likelihood = [exp(-float(n @ n) / 2) for n in noise]
        total = sum(
            w * (da[i] * atom + ds[i] * n) for w, atom, n in zip(likelihood, atoms, noise, strict=True)
        ) / sum(likelihood)
        torch.testing.assert_close(found[i], total, rtol=1e-8, atol=1e-8)


@each_path
def test_flow_to_a_gaussian_is_the_closed_form(path):
    """Mean a m and variance s^2 + a^2 tau^2, along t and back; nothing that runs against time does."""
    mean, std = 3.0, 0.5
    field = mixture_field(f64(1.0), f64(mean)[:, None], f64(std), path)
    grid = uniform_grid(100)[5:96]  # away from the ends, where VP's clock races
    start, middle, end = (f64(float(grid[i])) for i in (0, 50, -1))
    z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]

    def at(t):
        a, s, _, _ = path(t)
        return a * mean + (s**2 + a**2 * std**2).sqrt() * z

    # Between the knots of a table its velocity is smooth, at them it jumps: no method keeps its order there.
    near = {"rtol": 1e-2, "atol": 1e-2} if isinstance(path, Discrete) else {"rtol": 2e-5, "atol": 2e-5}
    for knots, one, other in (
        (grid[:51], start, middle),
        (grid[50:], middle, end),
        (grid[:51].flip(0), middle, start),
    ):
        torch.testing.assert_close(integrate(field, at(one), knots, SOLVERS["rk4"]), at(other), **near)


# The loss on it


def one_pair(path, dims=3):
    x0, x1 = pairs(40, (dims,), 4)
    return Pairs(x0, x1[:1].expand_as(x1))


@each_path
def test_loss_of_the_conditional_velocity_is_zero(path):
    """One datum makes the velocity a function of x and t; its atom's field knows nothing of the noise drawn."""
    to_one = one_pair(path)
    t = 0.05 + 0.9 * torch.rand(40, generator=gen(), dtype=torch.float64)
    field = atoms_field(to_one.x1[:1], path)
    scale = flow_matching_loss(lambda x, t, label: torch.zeros_like(x), path, to_one, t, Squared()).mean()
    assert flow_matching_loss(field, path, to_one, t, Squared()).max() < 1e-18 * scale

    def against_time(x, t, label):
        return -field(x, t, label)

    assert flow_matching_loss(against_time, path, to_one, t, Squared()).mean() > scale


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_finite_at_both_ends_of_time(path, dtype):
    x0, x1 = (x.to(dtype) for x in pairs(2, (3,), 5))
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    loss = flow_matching_loss(lambda x, t, label: torch.zeros_like(x), path, Pairs(x0, x1), t, Squared())
    assert loss.isfinite().all()


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.normalised], ids=naming)
def test_normalised_loss_is_at_unit_size(path):
    """On VE it is the loss of noise prediction, at all scales alike."""
    x0, x1 = pairs(60, (3,), 6)
    guess = torch.randn(3, generator=gen(7), dtype=torch.float64).expand_as(x0)

    def field(x, t, label):
        _, _, da, ds = coefficients(path, t, x)
        assert not da.any()
        return ds * guess

    loss = flow_matching_loss(field, path, Pairs(x0, x1), times(path, 60), Squared())
    torch.testing.assert_close(loss, (guess - x0).square().mean(1))


DELTAS = {
    "constant": lambda v, x, t: 0.1 + 0 * v,
    "larger": lambda v, x, t: 0.1 * v,
    "smaller": lambda v, x, t: -0.1 * v,
    "later": lambda v, x, t: (0.2 * t - 0.1)[:, None] + 0 * v,
    "periodic": lambda v, x, t: 0.2 * (2 * x).sin(),
    "inwards": lambda v, x, t: -0.1 * torch.tanh(x),
    "crossed": lambda v, x, t: 0.1 * x.flip(1) / (1 + x.square()),
}


@each_path
def test_no_field_beats_the_loss_of_the_exact_one(path):
    """E|v + delta - u|^2 = E|v - u|^2 + E|delta|^2: the cross term vanishes, paired over the same draws."""
    count, g = 20_000, gen(8)
    drawn = Pairs(
        torch.randn((count, 2), generator=g, dtype=torch.float64), sample_mixture(*MIXTURES[2], count, g)
    )
    t = torch.rand(count, generator=g, dtype=torch.float64)
    exact = mixture_field(*MIXTURES[2], path)
    floor = flow_matching_loss(exact, path, drawn, t, Squared())
    for name, delta in DELTAS.items():
        loss = flow_matching_loss(
            lambda x, t, label, delta=delta: exact(x, t, None) + delta(exact(x, t, None), x, t),
            path,
            drawn,
            t,
            Squared(),
        )
        at = path.span[0] + (path.span[1] - path.span[0]) * t
        x, _ = interpolate(path, drawn.x0, drawn.x1, at)
        added = delta(exact(x, at, None), x, at).square().mean(1)
        if path.normalised:
            added = added / path(at).ds.square()
        excess = loss - floor
        assert excess.mean() > -5 * excess.std() / count**0.5, name
        cross = excess - added
        assert cross.mean().abs() < 5 * cross.std() / count**0.5, name
        assert added.mean() > 0

    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    each = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    loss = flow_matching_loss(
        lambda x, t, label: exact(x, t, None) + offset + each[:, None], path, drawn, t, Squared()
    )
    slope, slopes = torch.autograd.grad(loss.sum(), (offset, each))
    torch.testing.assert_close(slope, slopes.sum())
    assert slopes.mean().abs() < 5 * slopes.std() / count**0.5

    def against_time(x, t, label):
        return -exact(x, t, None)

    worse = flow_matching_loss(against_time, path, drawn, t, Squared()) - floor
    assert worse.mean() > 10 * worse.std() / count**0.5


# Other people's paths

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
