"""Likelihoods against closed-form densities, an independent augmented ODE, and the integral of a density."""

from math import log, log2, pi

import pytest
import torch
from torch import distributions, func
from torch.nn import functional
from torchdiffeq import odeint

from fmcore.analytic import gaussian_field, mixture_field
from fmcore.flow.fields import Counted, network_field
from fmcore.flow.pixels import dequantise, quantise
from fmcore.flow.rng import generator
from fmcore.flow.times import uniform_grid
from fmcore.models.networks import MLP, initialised
from fmcore.ode.likelihood import CELLS, Tolerances, bits_per_dim, log_likelihood, uniform_dequantise
from fmcore.ode.solvers import SOLVERS

pytestmark = pytest.mark.numerics

RK4 = SOLVERS["rk4"]
GRID = uniform_grid(32)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, purpose="x"):
    return torch.randn(shape, generator=generator(0, purpose), dtype=torch.float64)


def small_network(dims=2, width=16):
    """A random smooth field that depends on everything: no divergence is 0 and no Jacobian is symmetric."""
    a, b, c = normal(width, dims, purpose="a"), normal(dims, width, purpose="b"), normal(width, purpose="c")

    def field(x, t, label):
        flat = x.flatten(1)
        offset = 0 if label is None else 0.3 * label[:, None]
        return (torch.tanh(flat @ a.T + c * (1 + t[:, None]) + offset) @ b.T / 4 + 0.5 * flat).reshape(x.shape)

    return field


def reference(field, x1, label=None, rtol=1e-8):
    """log p_1 by torchdiffeq's dopri5 on the augmented state, with the whole Jacobian by forward vmap."""

    def velocity(t, state):
        x = state[0]
        one = lambda row, mark: field(row[None], t[None], None if label is None else mark[None])[0]  # noqa: E731
        marks = torch.zeros(len(x), dtype=torch.int64) if label is None else label
        jacobian = func.vmap(func.jacrev(one))(x, marks)
        return func.vmap(one)(x, marks), jacobian.diagonal(dim1=1, dim2=2).sum(1)

    x, change = odeint(velocity, (x1, x1.new_zeros(len(x1))), f64(1, 0), rtol=rtol, atol=rtol, method="dopri5")
    return distributions.Normal(0.0, 1.0).log_prob(x[-1]).sum(1) + change[-1]


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (1, 2, 3)])
def test_gaussian(shape):
    m1, s1 = normal(*shape, purpose="m1"), normal(*shape, purpose="s1").exp()
    x1 = m1 + 2 * s1 * normal(20, *shape)
    field = gaussian_field(f64(0.0), f64(1.0), m1, s1)
    found = log_likelihood(field, x1, uniform_grid(256), RK4)
    exact = distributions.Normal(m1, s1).log_prob(x1).flatten(1).sum(1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def test_mixture():
    weights, means, stds = f64(0.2, 0.5, 0.3), normal(3, 2, purpose="means") * 2, f64(0.3, 0.7, 0.4)
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(weights),
        distributions.Independent(distributions.Normal(means, stds[:, None].expand(3, 2)), 1),
    )
    x1 = 2 * normal(100, 2)
    field, exact = mixture_field(weights, means, stds), mixture.log_prob(x1)
    torch.testing.assert_close(log_likelihood(field, x1, uniform_grid(256), RK4), exact, rtol=0, atol=1e-5)
    adaptive = log_likelihood(field, x1, GRID, Tolerances(1e-7, 1e-7))
    torch.testing.assert_close(adaptive, exact, rtol=0, atol=1e-4)


def test_the_grid_says_where_the_flow_starts_and_ends():
    """dx/dt = c x from N(0, 1) at the grid's start has standard deviation exp(c (stop - start)) at its end."""
    x1, grid = normal(10, 2), torch.linspace(0.1, 0.7, 33, dtype=torch.float64)
    exact = distributions.Normal(0.0, f64(1.5 * 0.6).exp()).log_prob(x1).sum(1)
    for solver in (RK4, Tolerances(1e-8, 1e-8)):
        found = log_likelihood(lambda x, t, label: 1.5 * x, x1, grid, solver)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


BACKWARD = [n for n, s in SOLVERS.items() if s.reversible and not s.stochastic]


@pytest.mark.parametrize("name", BACKWARD)
def test_every_deterministic_solver_converges(name):
    field, x1 = small_network(), normal(10, 2)
    exact = reference(field, x1)
    coarse, fine = (
        (log_likelihood(field, x1, uniform_grid(steps), SOLVERS[name]) - exact).abs().max() for steps in (8, 64)
    )
    assert fine < coarse / 6
    assert fine < 0.1


def test_time_runs_backwards_and_the_divergence_lowers_the_density():
    """At the centre of N(0, 3^2) the log density is log 3 lower a dimension; either sign error raises it."""
    zero, one = torch.zeros(4), torch.ones(4)
    field = gaussian_field(zero, one, zero, 3 * one)
    found = log_likelihood(field, torch.zeros(1, 4), uniform_grid(64), RK4)
    assert float(found) == pytest.approx(-4 * (log(3) + log(2 * pi) / 2), abs=1e-4)


def test_a_network_against_torchdiffeq_and_the_whole_jacobian():
    for dims in (2, 5):
        field, x1 = small_network(dims), 2 * normal(16, dims)
        exact = reference(field, x1)
        torch.testing.assert_close(log_likelihood(field, x1, GRID, RK4), exact, rtol=0, atol=1e-5)
        adaptive = log_likelihood(field, x1, GRID, Tolerances(1e-8, 1e-9))
        torch.testing.assert_close(adaptive, exact, rtol=0, atol=1e-6)


def test_the_density_integrates_to_one():
    axis = torch.linspace(-9, 9, 91, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    p = log_likelihood(small_network(), points, uniform_grid(16), RK4).exp()
    edge = points.abs().amax(1) > 8.9
    assert p[edge].max() < 1e-5, "the grid does not hold the whole density"
    assert float(p.sum() * 0.2**2) == pytest.approx(1, abs=2e-3)


def test_hutchinson_is_unbiased():
    """Each row holds the same point with its own probes."""
    field, x1 = small_network(3), normal(1, 3).expand(4000, 3)
    exact = log_likelihood(field, x1[:1], uniform_grid(8), RK4)
    found = log_likelihood(field, x1, uniform_grid(8), RK4, probes=1)
    error = found.std() / len(found) ** 0.5
    assert 0 < error < 0.05
    assert float(found.mean()) == pytest.approx(float(exact), abs=5 * float(error))


def test_more_probes_average():
    field, x1 = small_network(3), normal(1, 3).expand(500, 3)
    one, sixteen = (log_likelihood(field, x1, uniform_grid(4), RK4, probes=k).var() for k in (1, 16))
    assert sixteen < one / 8
    singles = [log_likelihood(field, x1, uniform_grid(4), RK4, probes=k) for k in (1, 2)]
    second = 2 * singles[1] - singles[0]
    assert not torch.allclose(second, singles[0])
    assert float(second.var()) == pytest.approx(float(one), rel=0.3), "the first probe is shared, the rest new"


def test_rademacher_probes_have_no_variance_on_a_diagonal_jacobian():
    field = gaussian_field(f64(0.0), f64(1.0), normal(3, purpose="m1"), normal(3, purpose="s1").exp())
    x1 = normal(10, 3)
    exact = log_likelihood(field, x1, GRID, RK4)
    for probes in (1, 3):
        torch.testing.assert_close(log_likelihood(field, x1, GRID, RK4, probes=probes), exact)


def test_estimates_do_not_depend_on_batching():
    field, x1 = small_network(), normal(7, 2)
    options = {"probes": 2, "seed": 3}
    whole = log_likelihood(field, x1, GRID, RK4, **options)
    parts = [
        log_likelihood(field, x1[a:b], GRID, RK4, start=a, **options) for a, b in ((0, 1), (1, 1), (1, 5), (5, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert torch.equal(log_likelihood(field, x1, GRID, RK4, **options), whole)
    for other in ({"seed": 4}, {"start": 1}):
        assert not torch.allclose(log_likelihood(field, x1, GRID, RK4, **(options | other)), whole)


def test_labels_reach_the_field():
    field, x1, label = small_network(), normal(6, 2), torch.tensor([0, 1, 2, 3, 4, 5])
    exact = reference(field, x1, label)
    for solver in (Tolerances(1e-7, 1e-7), RK4):
        found = log_likelihood(field, x1, GRID, solver, label=label)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    assert not torch.allclose(found[1:], log_likelihood(field, x1, GRID, RK4)[1:])


def test_a_real_network_in_float32_keeps_its_dtype_its_weights_and_its_inputs():
    network = initialised(MLP(width=32, depth=1), (1, 2, 2), 10, 0)
    for weight in network.parameters():
        with torch.no_grad():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator(0, "weights")))
    before = [weight.clone() for weight in network.parameters()]
    x1, label = normal(3, 1, 2, 2).float(), torch.tensor([1, 5, 9])
    kept, field = x1.clone(), Counted(network_field(network, "fp32"))
    found = log_likelihood(field, x1, uniform_grid(48), RK4, label=label)
    assert field.nfe == 48 * 4, "one evaluation of the network, whatever the number of directions"
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert torch.equal(x1, kept)
    assert not x1.requires_grad
    double = network.double()
    flat = lambda x, t, label: double(x.reshape(-1, 1, 2, 2), t, label).flatten(1)  # noqa: E731
    exact = reference(flat, x1.double().flatten(1), label, rtol=1e-5)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)
    assert (exact - distributions.Normal(0.0, 1.0).log_prob(x1.double()).flatten(1).sum(1)).abs().max() > 0.1


def test_wrong_inputs_are_refused():
    field, x1 = small_network(), normal(2, 2)
    with pytest.raises(ValueError, match="stochastic sampler has no likelihood"):
        log_likelihood(field, x1, GRID, SOLVERS["sde"])
    with pytest.raises(ValueError, match="from noise at 0 to data at 1 only"):
        log_likelihood(field, x1, GRID, SOLVERS["noise_anchored"])
    with pytest.raises(ValueError, match=r"probes must be 0.*got -1"):
        log_likelihood(field, x1, GRID, RK4, probes=-1)
    for solver in (RK4, Tolerances(1e-3, 1e-3)):
        with pytest.raises(ValueError, match=r"from noise to data, got 1\.0 to 0\.0"):
            log_likelihood(field, x1, GRID.flip(0), solver)
    with pytest.raises(RuntimeError, match="does not require grad"):
        log_likelihood(torch.no_grad()(field), x1, GRID, RK4)


@pytest.mark.parametrize(("levels", "width"), [(256, 2 / 255), (17, 1 / 8)])
def test_a_uniform_density_takes_log2_of_the_levels(levels, width):
    dims = 12
    log_p = f64(-dims * log(levels * width)).expand(3)
    torch.testing.assert_close(bits_per_dim(log_p, dims, width), f64(log2(levels)).expand(3))


WIDTH = 0.5
P = f64(0.1, 0.4, 0.2, 0.3)  # of the levels -0.75, -0.25, 0.25, 0.75, which fill [-1, 1]
ENTROPY = float(-(P * P.log2()).sum())


def discrete(count, dims):
    k = torch.multinomial(P, count * dims, replacement=True, generator=generator(0, "levels")).reshape(count, dims)
    return k, k.double() * WIDTH - 0.75


def test_bits_of_the_piecewise_constant_density_are_those_of_the_levels():
    """Its mean log density over a bin is the level's log probability: Jensen's inequality holds with equality."""
    k, levels = discrete(500, 3)
    x = uniform_dequantise(levels, WIDTH, seed=0)
    bins = ((x + 1) / WIDTH).floor().long()
    assert torch.equal(bins, k)
    found = bits_per_dim((P / WIDTH)[bins].log().sum(1), 3, WIDTH)
    torch.testing.assert_close(found, -P[k].log2().mean(1))


@pytest.mark.parametrize("std", [0.3, 0.6, 2.0])
def test_bits_of_any_density_are_at_least_the_entropy(std):
    count, dims = 5000, 3
    x = uniform_dequantise(discrete(count, dims)[1], WIDTH, seed=0)
    bits = bits_per_dim(distributions.Normal(0.1, std).log_prob(x).sum(1), dims, WIDTH)
    assert bits.mean() - 5 * bits.std() / count**0.5 > ENTROPY


def test_every_level_gets_a_bound_and_not_only_the_mean():
    """E log p over a bin + log width <= log of the bin's probability, by quadrature in one dimension."""
    density = distributions.Normal(0.1, 0.4)
    for level in (-0.75, -0.25, 0.25, 0.75):
        x = uniform_dequantise(torch.full((20, 1000), level, dtype=torch.float64), WIDTH, seed=0).flatten()
        log_p = density.log_prob(x)
        mass = density.cdf(f64(level + WIDTH / 2)) - density.cdf(f64(level - WIDTH / 2))
        bits = bits_per_dim(log_p, 1, WIDTH)
        assert bits.mean() + 5 * bits.std() / 20_000**0.5 > -mass.log2()
        exact = density.log_prob(f64(level) + WIDTH * ((torch.arange(1000) + 0.5) / 1000 - 0.5)).mean()
        assert float(bits.mean()) == pytest.approx(
            float(-exact / log(2) - log2(WIDTH)), abs=5 * float(bits.std()) / 20_000**0.5
        )


def test_dequantised_pixels_quantise_to_themselves():
    pixels = torch.arange(256, dtype=torch.uint8).expand(500, 256)
    x = uniform_dequantise(dequantise(pixels), 2 / 255, seed=0)
    assert x.dtype == torch.float32
    assert torch.equal(quantise(x), pixels)


def test_the_extreme_places_of_a_bin_survive_float32():
    """What chance would rarely draw: every place in every bin of 8-bit pixels."""
    pixels = torch.arange(256, dtype=torch.uint8)
    for cell in (0, 1, CELLS // 2, CELLS - 2, CELLS - 1):
        noise = torch.tensor(2 / 255 * ((cell + 0.5) / CELLS - 0.5), dtype=torch.float64).float()
        assert torch.equal(quantise(dequantise(pixels) + noise), pixels)


def test_the_noise_fills_the_bin_evenly_and_is_drawn_by_index():
    x1 = torch.zeros(2000, 1, 2, 3)
    x = uniform_dequantise(x1, 0.125, seed=0)
    unit = (x.double() / 0.125 + 0.5).flatten()
    assert -0.5 < unit.min() - 0.5 < -0.499
    assert 0.499 < unit.max() - 0.5 < 0.5
    assert float(unit.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / len(unit)) ** 0.5)
    counts = torch.histc(unit, 16, 0, 1)
    expected = len(unit) / 16
    assert ((counts - expected).square() / expected).sum() < 45, "chi-squared with 15 degrees of freedom, p = 1e-4"
    assert functional.cosine_similarity(x[:, 0, 0, 0], x[:, 0, 1, 2], dim=0).abs() < 0.12
    parts = [uniform_dequantise(x1[a:b], 0.125, seed=0, start=a) for a, b in ((0, 3), (3, 2000))]
    assert torch.equal(torch.cat(parts), x)
    assert not torch.equal(uniform_dequantise(x1, 0.125, seed=1), x)
