"""Networks that learn to predict noise, data or v on a path, as diffusion models do."""

import pytest
import torch

from fmcore.flow.couplings import Pairs, Stored
from fmcore.flow.fields import Convention, network_field
from fmcore.flow.losses import Squared, flow_matching_loss
from fmcore.flow.paths import VE, coefficients, convert, interpolate, prediction
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import MLP, initialised
from path_examples import EXAMPLES, naming

pytestmark = pytest.mark.numerics
UNSCALED = [path for path in EXAMPLES if not path.normalised]
each_path = pytest.mark.parametrize("path", UNSCALED, ids=naming)
each_kind = pytest.mark.parametrize("kind", ["noise", "data", "v"])


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x, t, label):
        return self.value.expand(len(x), x.shape[1])


@each_path
@each_kind
def test_the_loss_is_the_distance_of_predictions(path, kind):
    g = torch.Generator().manual_seed(0)
    stored = Stored(Pairs(torch.randn(40, 3, generator=g), torch.randn(40, 3, generator=g), None))
    of = flow_objective(stored, path, batch_size=100, precision="fp32", predicts=kind)
    pairs, t = of.draw(torch.Generator().manual_seed(1), 0.0)
    low, high = path.span
    t_on_path = low + (high - low) * t
    x_t, _ = interpolate(path, pairs.x0, pairs.x1, t_on_path)
    wanted = prediction(kind, coefficients(path, t_on_path, x_t), pairs.x0, pairs.x1)
    if kind != "v":
        assert torch.equal(wanted, {"noise": pairs.x0, "data": pairs.x1}[kind])
    found = of.loss(Constant([0.3, -0.2, 0.1]), (pairs, t))
    torch.testing.assert_close(found, (torch.tensor([0.3, -0.2, 0.1]) - wanted).square().mean(1))


@each_path
@each_kind
def test_an_exact_prediction_has_no_loss_and_the_flow_s_velocity(path, kind):
    """Of one datum: then x_t tells the noise."""
    x1 = torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(50, 2)
    pairs = Pairs(torch.randn(50, 2, dtype=torch.float64), x1, None)
    low, high = path.span
    t = 0.1 + 0.8 * torch.rand(50, dtype=torch.float64)

    def exact(x, t, label):
        c = coefficients(path, t, x)
        return prediction(kind, c, (x - c.a * x1) / c.s, x1)

    assert flow_matching_loss(exact, path, pairs, t, Squared(), predicts=kind).max() < 1e-18
    on_path = low + (high - low) * t
    x_t, u_t = interpolate(path, pairs.x0, pairs.x1, on_path)
    v = convert(path, x_t, on_path, exact(x_t, on_path, None), source=kind, target="velocity")
    torch.testing.assert_close(v, u_t, rtol=1e-6, atol=1e-8)


def test_a_network_learns_to_predict_the_noise():
    """Of N(2, 0.5^2), where the mean of the noise given x_t is s (x_t - 2 a) / (a^2 / 4 + s^2)."""
    g = torch.Generator().manual_seed(0)
    x1 = 2 + 0.5 * torch.randn(5000, 1, generator=g)
    stored = Stored(Pairs(torch.randn(5000, 1, generator=g), x1, None))
    path = next(path for path in UNSCALED if path.name == "vp")
    network = initialised(MLP(width=32, depth=1), (1,), None, 0)
    config = TrainConfig(100_000, 250, 2e-3, 0.0, 5000)
    of = flow_objective(stored, path, batch_size=250, precision="fp32", predicts="noise")
    for _ in train(new_state(network, config), of, config, seed=0):
        pass
    t = torch.linspace(0.05, 0.95, 500)
    a, s, _, _ = (value[:, None] for value in path(t))
    x_t = 2 * a + (a**2 / 4 + s**2).sqrt() * torch.randn(500, 1, generator=g)
    wanted = s * (x_t - 2 * a) / (a**2 / 4 + s**2)
    with torch.no_grad():
        found = network(x_t, t, None)
    assert (found - wanted).square().mean().sqrt() < 0.12
    v = network_field(network, "fp32", Convention(path, "noise"))(x_t, torch.full((500,), 0.5), None)
    assert v.isfinite().all()


def test_where_points_are_not_of_unit_scale_the_velocity_alone_is_learnt():
    stored = Stored(Pairs(torch.randn(4, 2), torch.randn(4, 2), None))
    with pytest.raises(ValueError, match="predicts: expected velocity for the path ve, got noise"):
        flow_objective(stored, VE(), batch_size=2, predicts="noise")
    with pytest.raises(ValueError, match="expected velocity for a network that has a convention, got data"):
        flow_objective(stored, batch_size=2, predicts="data", convention=Convention())
