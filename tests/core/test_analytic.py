"""The exact fields against conditional expectations, flows and each other."""

import pytest
import torch
from scipy import stats

from fmcore.analytic import (
    atoms_field,
    gaussian_field,
    gaussian_flow,
    gaussian_rectified_field,
    mixture_field,
    sample_mixture,
)
from fmcore.flow.couplings import Independent, Pairs
from fmcore.flow.fields import Counted, network_field
from fmcore.flow.losses import Squared, flow_matching_loss
from fmcore.flow.paths import LINEAR
from fmcore.flow.rng import generator
from fmcore.flow.times import Uniform, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, take_average, train
from fmcore.models.networks import MLP
from fmcore.ode.solvers import SOLVERS, integrate, trajectory
from fmcore.score.straightness import straightness, transport_cost

pytestmark = pytest.mark.numerics


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


GAUSSIANS = (f64(0.5, -1.0), f64(0.8, 1.5), f64(3.0, 0.0), f64(0.3, 2.0))
WEIGHTS, MEANS, STDS = f64(0.2, 0.5, 0.3), f64(-2.0, 0.0, 1.0, 1.5, 2.0, -1.0).reshape(3, 2), f64(0.3, 0.7, 0.1)
ATOMS = f64(-2.0, 0.0, 1.0, 1.5, 2.0, -1.0).reshape(3, 2)
TIMES = [0.0, 0.15, 0.5, 0.85, 0.97]


def normal(count, dims=2, purpose="x0"):
    return torch.randn((count, dims), generator=generator(0, purpose), dtype=torch.float64)


def gaussian_pairs(count):
    m0, s0, m1, s1 = GAUSSIANS
    return m0 + s0 * normal(count), m1 + s1 * normal(count, purpose="x1")


def mixture_pairs(count):
    return normal(count), sample_mixture(WEIGHTS, MEANS, STDS, count, generator(0, "x1"))


def atoms_pairs(count):
    return normal(count), ATOMS[torch.randint(3, (count,), generator=generator(0, "x1"))]


FIELDS = {
    "gaussian": (gaussian_field(*GAUSSIANS), gaussian_pairs),
    "mixture": (mixture_field(WEIGHTS, MEANS, STDS), mixture_pairs),
    "atoms": (atoms_field(ATOMS), atoms_pairs),
}


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", FIELDS)
def test_field_is_the_conditional_expectation(name, t):
    """u - E[u | x_t] is uncorrelated with every function of x_t: z-scores of a few of them."""
    field, pairs = FIELDS[name]
    x0, x1 = pairs(200_000)
    x_t = (1 - t) * x0 + t * x1
    residual = (x1 - x0) - field(x_t, f64(t).expand(len(x_t)), None)
    a, b = x_t[:, :1], x_t[:, 1:]
    for g in (torch.ones_like(a), a, b, a * b, a**2, b**2, (3 * a).sin(), (2 * b).cos(), (a > 0).double()):
        weighed = residual * g
        z = weighed.mean(0) / (weighed.std(0) / len(a) ** 0.5 + 1e-12)
        assert z.abs().max() < 4.5


def test_gaussian_field_integrates_to_the_flow_map():
    field, (m0, s0, _, _) = gaussian_field(*GAUSSIANS), GAUSSIANS
    x0 = m0 + s0 * normal(50)
    for t in (0.25, 0.5, 1.0):
        end = integrate(field, x0, uniform_grid(256) * t, SOLVERS["rk4"])
        torch.testing.assert_close(end, gaussian_flow(*GAUSSIANS, x0, f64(t).expand(50)), rtol=0, atol=1e-7)


def test_gaussian_flow_has_the_marginals_of_the_path():
    m0, s0, _, _ = GAUSSIANS
    x0 = m0 + s0 * normal(20_000)
    for t in (0.0, 0.3, 1.0):
        a, b = gaussian_pairs(20_000)
        along = gaussian_flow(*GAUSSIANS, x0, f64(t).expand(len(x0)))
        mixed = (1 - t) * a + t * b.roll(7, 0)
        for i in range(2):
            assert stats.ks_2samp(along[:, i].numpy(), mixed[:, i].numpy()).pvalue > 1e-3


def test_one_euler_step_is_exact_after_reflow():
    m0, s0, _, _ = GAUSSIANS
    x0 = m0 + s0 * normal(100)
    end = gaussian_flow(*GAUSSIANS, x0, torch.ones(100, dtype=torch.float64))
    rectified = gaussian_rectified_field(*GAUSSIANS)
    for steps in (1, 2, 7):
        torch.testing.assert_close(integrate(rectified, x0, uniform_grid(steps), SOLVERS["euler"]), end)
    assert (integrate(gaussian_field(*GAUSSIANS), x0, uniform_grid(1), SOLVERS["euler"]) - end).abs().max() > 0.1


def test_reflow_straightens():
    m0, s0, _, _ = GAUSSIANS
    x0 = m0 + s0 * normal(1000)
    before, after = (
        straightness(list(trajectory(field, x0, uniform_grid(100), SOLVERS["euler"])), uniform_grid(100)).mean()
        for field in (gaussian_field(*GAUSSIANS), gaussian_rectified_field(*GAUSSIANS))
    )
    assert before > 0.05
    assert after < 1e-25


def test_reflow_does_not_raise_the_transport_cost():
    """E|x1 - x0|^2: of independent Gaussians, and W2^2, which one reflow reaches here; means over 2 dimensions."""
    m0, s0, m1, s1 = GAUSSIANS
    x0, x1 = gaussian_pairs(200_000)
    before = transport_cost(x0, x1)
    after = transport_cost(x0, gaussian_flow(*GAUSSIANS, x0, torch.ones(len(x0), dtype=torch.float64)))
    for cost, exact in (
        (before, (m1 - m0).square() + s0**2 + s1**2),
        (after, (m1 - m0).square() + (s1 - s0) ** 2),
    ):
        assert float(cost.mean()) == pytest.approx(float(exact.mean()), abs=5 * float(cost.std()) / 200_000**0.5)
    assert after.mean() < before.mean()


def at_random(count=500):
    return 2 * normal(count, purpose="x"), torch.rand(count, generator=generator(0, "t"), dtype=torch.float64)


def test_a_mixture_of_one_or_of_equals_is_a_gaussian():
    x, t = at_random()
    mean, std = f64(1.0, -2.0), f64(0.4)
    gaussian = gaussian_field(f64(0.0, 0.0), f64(1.0, 1.0), mean, std.expand(2))(x, t, None)
    for k in (1, 3):
        weights = torch.arange(1, k + 1, dtype=torch.float64)
        mixture = mixture_field(weights / weights.sum(), mean.expand(k, 2), std.expand(k))
        torch.testing.assert_close(mixture(x, t, None), gaussian)


def test_order_of_components_does_not_matter():
    x, t = at_random()
    moved = mixture_field(WEIGHTS.flip(0), MEANS.flip(0), STDS.flip(0))
    torch.testing.assert_close(moved(x, t, None), mixture_field(WEIGHTS, MEANS, STDS)(x, t, None))


def test_mixture_samples_follow_their_distribution():
    weights, means, stds = f64(0.3, 0.7), f64(-1.0, 2.0).reshape(2, 1), f64(0.5, 0.2)
    x = sample_mixture(weights, means, stds, 20_000, generator(0, "mixture"))

    def cdf(x):
        return 0.3 * stats.norm.cdf(x, -1.0, 0.5) + 0.7 * stats.norm.cdf(x, 2.0, 0.2)

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > 1e-3


def test_the_mixture_field_carries_noise_to_the_mixture():
    weights, means, stds = f64(0.3, 0.7), f64(-1.0, 2.0).reshape(2, 1), f64(0.5, 0.2)
    x1 = integrate(mixture_field(weights, means, stds), normal(10_000, 1), uniform_grid(100), SOLVERS["rk4"])

    def cdf(x):
        return 0.3 * stats.norm.cdf(x, -1.0, 0.5) + 0.7 * stats.norm.cdf(x, 2.0, 0.2)

    assert stats.kstest(x1[:, 0].numpy(), cdf).pvalue > 1e-3


def test_euler_ends_on_atoms_equally_often():
    x1 = integrate(atoms_field(ATOMS), normal(3000), uniform_grid(64), SOLVERS["euler"])
    gap, nearest = torch.cdist(x1, ATOMS).min(1)
    assert gap.quantile(0.99) < 1e-6
    # The basins of the deterministic map are not exactly the atoms' shares at a finite step.
    assert torch.bincount(nearest, minlength=3).double().div(3000).sub(1 / 3).abs().max() < 0.05


def test_loss_of_the_exact_field_is_the_conditional_variance():
    """Var(x1 - x0 | x_t) = s0^2 s1^2 / ((1-t)^2 s0^2 + t^2 s1^2): what no field can explain."""
    _, s0, _, s1 = GAUSSIANS
    x0, x1 = gaussian_pairs(100_000)
    for t in (0.0, 0.4, 0.9):
        loss = flow_matching_loss(
            gaussian_field(*GAUSSIANS), LINEAR, Pairs(x0, x1), f64(t).expand(len(x0)), Squared()
        )
        exact = (s0 * s1) ** 2 / ((1 - t) ** 2 * s0**2 + t**2 * s1**2)
        assert float(loss.mean()) == pytest.approx(float(exact.mean()), abs=5 * float(loss.std()) / len(x0) ** 0.5)


def test_a_network_approaches_the_loss_of_the_exact_field_and_never_beats_it():
    weights, means, stds = f64(0.5, 0.5), f64(-1.5, 0.0, 1.5, 0.5).reshape(2, 2), f64(0.4, 0.4)
    data = sample_mixture(weights, means, stds, 200_000, generator(0, "train data")).float()
    config = TrainConfig(images=400_000, batch_size=512, lr=3e-3, lr_final=0.0, ema_halflife_images=(5000.0,))
    torch.manual_seed(0)
    state = new_state(MLP(width=64, depth=2).build((2,), None), config)
    objective = flow_objective(Independent(data), LINEAR, Uniform(), Squared(), batch_size=512, precision="fp32")
    for _ in train(state, objective, config, seed=0, every=1000):
        pass
    field = network_field(take_average(state), "fp32")

    fresh = sample_mixture(weights, means, stds, 100_000, generator(0, "test data"))
    pairs, t = (
        Pairs(normal(len(fresh), purpose="test noise"), fresh),
        Uniform()(len(fresh), generator(1, "t")).double(),
    )
    with torch.no_grad():
        floor, found, nothing = (
            flow_matching_loss(f, LINEAR, pairs, t, Squared())
            for f in (mixture_field(weights, means, stds), field, lambda x, t, label: torch.zeros_like(x))
        )
    above = found - floor
    assert above.mean() > -3 * above.std() / len(above) ** 0.5, "the exact field's loss is a lower bound"
    assert above.mean() < 0.02 * floor.mean()
    assert nothing.mean() > 1.3 * floor.mean()


def test_counted_fields_count_and_change_nothing():
    x, t = at_random(5)
    field = gaussian_field(*GAUSSIANS)
    counted = Counted(field)
    assert torch.equal(counted(x, t, None), field(x, t, None))
    assert counted.nfe == 1
