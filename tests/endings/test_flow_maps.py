"""Flow maps: networks with a second time, and the endings that train them, against maps in closed form."""

import pytest
import torch

from exact_maps import MEAN, STD, ExactMap
from fmcore.endings import ENDINGS
from fmcore.endings.maps import HALVINGS, MapEnding, derivative, spans
from fmcore.flow.couplings import Independent, Pairs, Stored
from fmcore.flow.fields import OURS, Convention, MapField, network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import VP
from fmcore.flow.rng import generator
from fmcore.models.flow_maps import FlowMap, with_second_time
from fmcore.models.networks import MLP, UNet, UNet1D
from fmcore.ode.solvers import SOLVERS, integrate

pytestmark = pytest.mark.numerics
MAPS = {name: kind for name, kind in ENDINGS.items() if issubclass(kind, MapEnding)}
every = pytest.mark.parametrize("name", MAPS)
NETWORKS = {
    "mlp": (MLP(width=16, depth=2), (3,)),
    "unet": (UNet(channels=(8, 16), layers=1), (1, 8, 8)),
    "attention": (UNet(channels=(8, 16), layers=1, attention=True, patch=2), (1, 8, 8)),
}


def line_pairs(count=4000, seed=0):
    x0 = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed))
    return Stored(Pairs(x0, MEAN + STD * x0, None))


def data(count=20_000, seed=0):
    return Independent(MEAN + STD * torch.randn(count, 1, generator=torch.Generator().manual_seed(seed)))


def objective(name, coupling, size=4000):
    ending = MAPS[name](distance=Squared(), diagonal=0.5)
    return ending.objective(coupling, batch_size=size, precision="fp32", convention=OURS)


def losses(name, coupling, network, seed=0):
    of = objective(name, coupling)
    return of.loss(network, of.draw(torch.Generator().manual_seed(seed), 0.5))


@every
def test_on_lines_that_do_not_cross_the_exact_map_has_no_loss(name):
    assert losses(name, line_pairs(), ExactMap(independent=False)).max() < 1e-9


@every
@pytest.mark.parametrize("wrong", ["swapped times", "backwards"])
def test_a_wrong_map_has_some(name, wrong):
    assert losses(name, line_pairs(), ExactMap(independent=False, wrong=wrong))[2000:].mean() > 1e-3


def slopes(name, **more):
    """The slope of the loss by `off`, and its error, over random pairs."""
    found = []
    for seed in range(20):
        network = ExactMap(independent=True, **more)
        losses(name, data(), network, seed)[2000:].mean().backward()
        found.append(network.off.grad)
    found = torch.stack(found)
    return found.mean(), found.std() / len(found) ** 0.5


@every
def test_on_random_pairs_the_exact_map_has_no_slope(name):
    """Its loss is not 0: a pair's velocity is not the flow's. The mean over pairs is."""
    slope, error = slopes(name)
    assert abs(slope) <= 4 * error + 1e-9


@every
def test_the_velocity_in_place_of_its_mean_has_a_slope(name):
    slope, error = slopes(name, wrong="velocity instead of its mean")
    assert abs(slope) > 8 * error


def random_map(*shape):
    network = with_second_time(MLP(width=16, depth=1).build(shape, None)).double()
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)

    def mean(x, t, s, label):
        return network(x.double(), t.double(), label, s.double())

    return network, MapField(mean, mean)


def test_the_derivative_of_meanflow_is_that_of_differences():
    """An independent evaluation of arXiv:2505.13447, eq. 6: both ends are moved along the pair's own line."""
    of = objective("meanflow", data(), 64)
    batch = of.draw(torch.Generator().manual_seed(1), 0.5)
    _, field = random_map(1)
    (x0, x1, _), t, s = batch.off_diagonal, batch.t.double(), batch.s.double()
    x0, x1 = x0.double(), x1.double()
    x_t = x0 + t[:, None] * (x1 - x0)
    u, target = MAPS["meanflow"](Squared(), 0.5).of_map(field, Pairs(x0, x1, None), x_t, t, s)
    eps = 1e-6
    ahead, behind = (field.mean(x0 + (t + e)[:, None] * (x1 - x0), t + e, s, None) for e in (eps, -eps))
    wanted = x1 - x0 + (s - t)[:, None] * (ahead - behind) / (2 * eps)
    torch.testing.assert_close(target, wanted, rtol=1e-4, atol=1e-5)
    assert u.requires_grad
    assert not target.requires_grad


def test_the_velocity_of_the_lagrangian_s_end_is_that_of_differences():
    network, field = random_map(2)
    x, t, s = torch.randn(50, 2).double(), 0.4 * torch.rand(50).double(), 0.5 + 0.4 * torch.rand(50).double()

    def end(s):
        return x + (s - t)[:, None] * field.mean(x, t, s, None)

    moved, target = MAPS["lagrangian"](Squared(), 0.5).of_map(field, Pairs(x, x, None), x, t, s)
    torch.testing.assert_close(moved, (end(s + 1e-6) - end(s - 1e-6)) / 2e-6, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target, field(end(s), s, None))
    moved.sum().backward()
    assert network.second.leave.weight.grad.abs().max() > 0, "through the derivative, too"
    assert not target.requires_grad


def test_spans_are_of_all_sizes_within_the_unit_interval():
    t, s = spans(100_000, torch.Generator().manual_seed(0))
    assert (t >= 0).all()
    assert (s <= 1).all()
    assert (s > t).all()
    whole = (s - t == 1).float().mean()
    assert abs(whole - 1 / (HALVINGS + 1)) < 0.005
    assert (t[s - t == 1] == 0).all()
    assert (s - t).min() < 2.0 ** (1 - HALVINGS) / 1.9


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("classes", [None, 3])
def test_a_second_time_changes_nothing_where_it_is_the_first(kind, classes):
    config, shape = NETWORKS[kind]
    torch.manual_seed(0)
    network = config.build(shape, classes).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, t = torch.randn(5, *shape), torch.rand(5)
    s, label = t + 0.3 * (1 - t), None if classes is None else torch.arange(5) % classes
    before = network(x, t, label)
    with_second_time(network)
    assert network.has_second_time
    assert torch.equal(network(x, t, label), before)
    assert torch.equal(network(x, t, label, s), before), "before it is trained"
    second = network.second if kind == "mlp" else network.unet.class_embedding.second
    torch.nn.init.normal_(second.leave.weight)
    assert torch.equal(network(x, t, label), before), "and after"
    assert torch.equal(network(x, t, label, t), before)
    assert not torch.equal(network(x, t, label, s), before)


@pytest.mark.parametrize("kind", NETWORKS)
def test_derivatives_of_every_network_are_those_of_differences(kind):
    config, shape = NETWORKS[kind]
    torch.manual_seed(0)
    network = FlowMap(config).build(shape, None).double().eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)

    def mean(x, t, s, label):
        return network(x, t, label, s)

    field, eps = MapField(mean, mean), 1e-4  # diffusers embeds times in float32
    x, t, s = torch.randn(4, *shape).double(), torch.full((4,), 0.2).double(), torch.full((4,), 0.7).double()
    v = torch.randn_like(x)
    u, by_s = derivative(field, lambda s: (x, t, s, None), (s,), (torch.ones_like(s),))
    torch.testing.assert_close(u, mean(x, t, s, None))
    wanted = (mean(x, t, s + eps, None) - mean(x, t, s - eps, None)) / (2 * eps)
    assert (by_s - wanted).norm() < 0.01 * wanted.norm()
    _, along = derivative(field, lambda x, t: (x, t, s, None), (x, t), (v, torch.ones_like(t)))
    wanted = (mean(x + eps * v, t + eps, s, None) - mean(x - eps * v, t - eps, s, None)) / (2 * eps)
    assert (along - wanted).norm() < 0.01 * wanted.norm()


@every
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.precisions
def test_every_ending_trains_every_network_in_either_precision(name, kind):
    config, shape = NETWORKS[kind]
    network = FlowMap(config).build(shape, None)
    stored = Stored(Pairs(torch.randn(20, *shape), torch.randn(20, *shape), None))
    ending = MAPS[name](distance=Squared(), diagonal=0.5)
    of = ending.objective(stored, batch_size=8, precision="auto", convention=OURS)
    of.loss(network, of.draw(torch.Generator().manual_seed(0), 0.0)).mean().backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_a_module_or_field_of_the_user_s_with_a_mean_is_no_map():
    class Normalised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(2))
            self.w = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, label):
            return self.w * (x - self.mean)

    assert integrate(Normalised(), torch.zeros(3, 2), 1, "euler").tolist() == [[-1.0, -1.0]] * 3


def test_a_flow_map_itself_is_integrated_as_its_field_is():
    network = ExactMap(independent=True)
    x0 = torch.linspace(-2, 2, 5)[:, None]
    torch.testing.assert_close(
        integrate(network, x0, 1, "euler"), integrate(network_field(network, "fp32"), x0, 1, "euler")
    )


def test_networks_that_take_none_are_refused():
    with pytest.raises(ValueError, match="a VelocityUNet1D takes no second time: expected an mlp or a unet"):
        with_second_time(UNet1D(channels=(8, 8)).build((1, 8), None))


def test_euler_takes_the_map_s_own_steps_and_others_its_velocity():
    exact = ExactMap(independent=True)
    field = network_field(exact, "fp32")
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    wanted = MEAN + STD * x0
    for grid in (1, 3, torch.tensor([0.0, 0.1, 0.75, 1.0])):
        torch.testing.assert_close(integrate(field, x0, grid, "euler"), wanted, rtol=1e-6, atol=1e-6)
    assert (integrate(field, x0, 1, "midpoint") - wanted).abs().max() > 0.01
    torch.testing.assert_close(integrate(field, x0, 200, "rk4"), wanted, rtol=1e-5, atol=1e-5)
    back = torch.linspace(1, 0, 401, dtype=torch.float64)
    torch.testing.assert_close(integrate(field, wanted, back, "euler"), x0, rtol=0.02, atol=0.02)
    assert integrate(field, wanted, torch.tensor([1.0, 0.0]), SOLVERS["euler"]).isfinite().all(), "by its velocity"


@every
def test_networks_without_a_second_time_or_of_another_path_are_refused(name):
    of = objective(name, line_pairs(), 10)
    with pytest.raises(TypeError, match="expected a network with a second time, got a ResidualMLP"):
        of.loss(MLP(width=8, depth=1).build((1,), None), of.draw(generator(0, "x", 0), 0.0))
    with pytest.raises(ValueError, match="starts from a velocity on the linear path"):
        MAPS[name](Squared(), 0.5).objective(
            line_pairs(), batch_size=8, precision="fp32", convention=Convention(VP())
        )
    with pytest.raises(ValueError, match="a flow map predicts velocities on the path it is used on"):
        network_field(ExactMap(independent=True), "fp32", Convention(VP()))
    with pytest.raises(ValueError, match="diagonal in"):
        MAPS[name](Squared(), 1.0)
