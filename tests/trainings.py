"""Small trainings: fresh networks on little data, and the same taken up from a checkpoint."""

import torch

from fmcore.disk import checkpoint
from fmcore.flow.couplings import Independent
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.speed import prepare
from fmcore.flow.times import Uniform
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.intake.points import EightGaussians
from fmcore.models.networks import MLP, UNet

CONFIG = TrainConfig(
    images=22 * 16, batch_size=16, lr=1e-3, lr_final=0.1, warmup_images=64, ema_halflife_images=(50.0, 200.0)
)
POINTS = EightGaussians(count=500).load().x1
DIGITS = torch.rand((20, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1

NETWORKS = {
    "mlp": (MLP(width=16, depth=1), POINTS),
    "unet with dropout": (UNet(channels=(8, 16), dropout=0.3), DIGITS),
}


def objective_on(x1, label=None, batch_size=16, precision="fp32"):
    return flow_objective(
        Independent(x1, label), LINEAR, Uniform(), Squared(), batch_size=batch_size, precision=precision
    )


def fresh(name, config=CONFIG, seed=0):
    network, x1 = NETWORKS[name]
    torch.manual_seed(seed)
    network = network.build(tuple(x1.shape[1:]), None)
    prepare(network, "fp32", "off", work=0.0, training=True)  # as the pipeline does: images get another layout
    return new_state(network, config)


def weights(state):
    return [p.detach().clone() for p in state.network.parameters()], [a.clone() for a in state.averages[0]]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def resumed(name, folder, damage=lambda state: None):
    state = fresh(name, seed=99)
    assert checkpoint.restore(state, folder) == []
    damage(state)
    torch.manual_seed(1234)
    records = list(train(state, objective_on(NETWORKS[name][1]), CONFIG, seed=5, every=4))
    return weights(state), records
