"""Trained in one step, maps between a Gaussian and two components against the map of a fine solver."""

import pytest
import torch

from fmcore.analytic import mixture_field
from fmcore.endings import ENDINGS
from fmcore.endings.maps import MapEnding
from fmcore.flow.couplings import Pairs, Stored
from fmcore.flow.fields import OURS, network_field
from fmcore.flow.losses import PseudoHuber
from fmcore.flow.paths import LINEAR
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.models.flow_maps import with_second_time
from fmcore.models.networks import MLP, initialised
from fmcore.ode.solvers import integrate

pytestmark = [pytest.mark.numerics, pytest.mark.slow]
MIXTURE = (torch.tensor([0.6, 0.4]), torch.tensor([[1.2, 0.4], [-1.0, -0.8]]), torch.tensor([0.5, 0.35]))
OWN = {
    "regression": {"k": 1},
    "consistency": {"at_noise": 0.5, "halvings": 5},
    **{name: {"diagonal": 0.5} for name, kind in ENDINGS.items() if issubclass(kind, MapEnding)},
}


def pairs(count, seed):
    """Noise, and where a fine solver takes it along the exact field."""
    x0 = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    exact = mixture_field(*(part.double() for part in MIXTURE), LINEAR)
    return Pairs(x0, integrate(exact, x0.double(), 64, "rk4").float(), None)


@pytest.mark.parametrize("name", OWN)
def test_one_step_of_a_trained_map_ends_where_a_fine_solver_does(name):
    ending = ENDINGS[name](distance=PseudoHuber(0.03), **OWN[name])
    config, is_map = MLP(64, 2), isinstance(ending, MapEnding)
    torch.manual_seed(0)
    network = initialised(config, (2,), None, 0)
    if is_map:
        with_second_time(network)
    training = TrainConfig(images=250_000, batch_size=256, lr=2e-3, lr_final=0.0, ema_halflife_images=(5000,))
    state = new_state(network, training)
    objective = ending.objective(Stored(pairs(20_000, 0)), batch_size=256, precision="fp32", convention=OURS)
    list(train(state, objective, training, seed=0))
    field = network_field(take_average(state), "fp32")
    fresh = pairs(4000, 1)
    off = (integrate(field, fresh.x0, 1, "euler") - fresh.x1).norm(dim=1)
    spread = (fresh.x1 - fresh.x1.mean(0)).norm(dim=1).mean()
    assert off.mean() < 0.15 * spread
