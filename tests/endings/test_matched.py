"""The matched flow: its objective against sums written out, what it leaves alone, and what it reaches."""

import pytest
import torch

from fmcore.endings import target as module
from fmcore.endings.matched import Matched
from fmcore.endings.spaces import Hidden, Pixels, embedding, energy, scale_of
from fmcore.endings.target import target_of
from fmcore.flow.couplings import Independent, Pairs, Stored, joined
from fmcore.flow.fields import Convention, network_field
from fmcore.flow.losses import PseudoHuber, Squared, flow_matching_loss
from fmcore.flow.paths import LINEAR
from fmcore.flow.times import uniform_grid
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.models.folder import Trained
from fmcore.models.networks import MLP, initialised
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.points import energy_distance

pytestmark = pytest.mark.numerics
CPU = torch.device("cpu")
OPTIONS = {"precision": "fp32", "convention": Convention(LINEAR)}


def ending(**changes):
    usual = {"distance": Squared(), "at_noise": 0.75, "start": 0.25, "weight": 3.0, "real": 5}
    return Matched(**{**usual, "spaces": (Pixels(),), **changes})


def base(dims=2, **more):
    config = MLP(16, 2)
    network = initialised(config, (dims,), None, 0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return Trained(network, config, (dims,), None, {}, "", **more)


PIXELS = (Pixels(),)


def target(spaces=PIXELS, count=40, label=None, clip=False, x1=None):
    x1 = torch.randn(count, 2, generator=torch.Generator().manual_seed(5)) if x1 is None else x1
    return target_of(embedding(spaces, base(), "fp32"), Independent(x1, label), flip=False, clip=clip, device=CPU)


def stored(count=30, label=None):
    generator = torch.Generator().manual_seed(2)
    return Stored(Pairs(*torch.randn(2, count, 2, generator=generator), label))


class Bent(torch.nn.Module):
    """A velocity that depends on x and on t, so that a wrong one of either shows."""

    def __init__(self):
        super().__init__()
        self.v = torch.nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x, t, label):
        return self.v * (1 + t[:, None]) + 0.5 * x.sin() * t[:, None].cos()


@pytest.mark.parametrize("clip", [False, True])
def test_loss_is_the_regression_and_the_energies_of_both_groups_in_each_space(clip):
    spaces = (Pixels(), Hidden("block2", 0.6))
    whole, network = target(spaces, clip=clip), Bent()
    objective = ending(spaces=spaces).objective(stored(), whole, batch_size=8, **OPTIONS)
    batch = objective.draw(torch.Generator().manual_seed(0), 0.5)
    drawn, _ = batch.real
    assert [len(part.x0) for part in batch[:2]] == [6, 2]
    assert batch.t.unique().numel() == 1
    t = float(batch.t[0])

    def v(x, t):
        return network(x, torch.full((len(x),), t), None)

    # The later ones have come by two Euler steps of the flow's own, and are to go on as they came.
    x0 = batch.later.x0
    middle = x0 + t / 2 * v(x0, 0.0)
    later = (middle + t / 2 * v(middle, t / 2)).detach()
    embed, data, wanted, regressions = embedding(spaces, base(), "fp32"), whole.data.x1, torch.tensor(0.0), []
    for x_t, s, u_t in (
        (batch.at_noise.x0, 0.0, batch.at_noise.x1 - batch.at_noise.x0),
        (later, t, (later - x0) / t),
    ):
        velocity = v(x_t, s)
        regressions.append((velocity - u_t).square().mean(1))
        ends = x_t + (1 - s) * velocity
        found = embed(ends.clamp(-1, 1) if clip else ends, None)
        for x, y, of_all in zip(found, embed(data[drawn], None), embed(data, None), strict=True):
            wanted = wanted + 3.0 * energy(x, y, scale_of(of_all, None))
    wanted = wanted + torch.cat(regressions).mean()
    torch.testing.assert_close(objective.loss(network, batch), wanted, rtol=1e-4, atol=1e-5)
    # What a mistake would give is another number.
    for mistaken in (
        batch._replace(t=batch.t * 0.5),
        batch._replace(at_noise=batch.at_noise._replace(x0=batch.at_noise.x1)),
        batch._replace(later=batch.later._replace(x0=batch.later.x1)),
        batch._replace(real=((drawn + 1) % 40, None)),
    ):
        assert abs(float((objective.loss(network, mistaken) - wanted).detach())) > 1e-4


def test_before_the_matching_it_is_reflow():
    network = Bent()
    objective = ending().objective(stored(), None, batch_size=8, **OPTIONS)
    batch = objective.draw(torch.Generator().manual_seed(0), 0.0)
    pairs, t = joined(batch[:2]), torch.cat([torch.zeros(6), batch.t])

    def field(x, t, label):
        return network(x, t, label)

    torch.testing.assert_close(
        objective.loss(network, batch), flow_matching_loss(field, LINEAR, pairs, t, Squared()).mean()
    )


def test_matching_begins_when_it_is_to_and_changes_no_pair_before():
    with_data, without = (ending().objective(stored(), of, batch_size=8, **OPTIONS) for of in (target(), None))
    early, late, alone = (
        objective.draw(torch.Generator().manual_seed(1), progress)
        for objective, progress in ((with_data, 0.2), (with_data, 0.25), (without, 0.25))
    )
    assert early.real is None
    assert late.real is not None
    for one in (early, late):
        assert torch.equal(one.at_noise.x0, alone.at_noise.x0)
        assert torch.equal(one.t, alone.t)
    plain = without.loss(Bent(), alone)
    assert torch.equal(with_data.loss(Bent(), early), plain)


def test_a_share_of_one_trains_a_one_step_model_only():
    objective = ending(at_noise=1.0).objective(stored(), target(), batch_size=8, **OPTIONS)
    batch = objective.draw(torch.Generator().manual_seed(0), 0.9)
    assert [len(part.x0) for part in batch[:2]] == [8, 0]
    assert torch.isfinite(objective.loss(Bent(), batch))


@pytest.mark.parametrize("label", [None, torch.arange(40) % 3])
def test_features_kept_or_made_as_they_are_drawn_are_the_same(monkeypatch, label):
    spaces, network = (Pixels(), Hidden("block1", 0.9)), Bent()
    pairs_label = None if label is None else torch.arange(30) % 3
    found = []
    for limit in (2**30, 0):
        monkeypatch.setattr(module, "KEPT_BYTES", limit)
        of = target(spaces, label=label)
        assert (of.kept is None) == (limit == 0)
        objective = ending(spaces=spaces).objective(stored(label=pairs_label), of, batch_size=8, **OPTIONS)
        batch = objective.draw(torch.Generator().manual_seed(0), 0.9)
        found.append(objective.loss(network, batch))
    torch.testing.assert_close(*found)


def test_mirror_images_are_data_too():
    images = torch.arange(24.0).reshape(2, 1, 3, 4)
    drawn = module.embedded(lambda x, _: [x.flatten(1)], Independent(images), torch.arange(4), CPU)[0][0]
    assert torch.equal(drawn, torch.cat([images, images.flip(-1)]).flatten(1))
    of = target_of(lambda x, _: [x.flatten(1)], Independent(images), flip=True, clip=True, device=CPU)
    assert {int(row) for row in of.draw(200, torch.Generator().manual_seed(0))[0]} == {0, 1, 2, 3}


def test_parts_of_a_batch_have_shares_of_both_groups_and_of_the_data():
    config = TrainConfig(16, 16, 1e-3, accumulate=2)
    objective = ending(real=4, start=0.0).objective(stored(), target(), batch_size=16, **OPTIONS)
    seen = []

    def loss(network, batch):
        seen.append((len(batch.at_noise.x0), len(batch.later.x0), len(batch.t), len(batch.real[0])))
        return objective.loss(network, batch)

    list(train(new_state(Bent(), config), objective._replace(loss=loss), config, seed=0))
    assert seen == [(6, 2, 2, 2)] * 2


class Affine(torch.nn.Module):
    """The velocity of the straight flow from N(0, 1) to N(b, a^2), exact at its start."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(float(value))) for value in (a, b))

    def forward(self, x, t, label):
        t = t[:, None]
        x0 = (x - t * self.b) / (1 - t + t * self.a)
        return self.b + (self.a - 1) * x0


def test_the_exact_map_between_gaussians_is_a_fixed_point():
    """The mean gradient over many draws is zero within its error there, and is not a little beside it."""
    a, b = 0.5, 1.0
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(20_000, 2, generator=generator)
    data = a * torch.randn(20_000, 2, generator=generator) + b
    of = target(x1=data)
    objective = ending(weight=1.0, real=64).objective(
        Stored(Pairs(x0, a * x0 + b, None)), of, batch_size=64, **OPTIONS
    )

    def gradients(network):
        found = []
        for step in range(600):
            network.zero_grad()
            batch = objective.draw(torch.Generator().manual_seed(step), 0.9)
            objective.loss(network, batch).backward()
            found.append(torch.stack([network.a.grad, network.b.grad]))
        all_ = torch.stack(found)
        return all_.mean(0), all_.std(0) / len(all_) ** 0.5

    mean, error = gradients(Affine(a, b))
    assert (mean.abs() < 4 * error + 0.01).all(), (mean, error)
    mean, error = gradients(Affine(a + 0.1, b - 0.1))
    assert mean[0] > 8 * error[0]
    assert mean[1] < -8 * error[1]


@pytest.mark.slow
def test_a_matched_flow_comes_nearer_to_a_mixture_than_the_pairs_it_learnt():
    """The pairs' ends lie too near to each other, as a coarse solver's do; with the data it finds the way."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(4000, 2, generator=generator)
    side = x0[:, :1].sign()
    data = 0.3 * torch.randn(4000, 2, generator=generator) + torch.tensor([1.5, 0.0]) * torch.where(
        torch.rand(4000, 1, generator=generator) < 0.5, 1.0, -1.0
    )
    x1 = 0.2 * x0 + torch.cat([1.1 * side, torch.zeros_like(side)], 1)
    config = TrainConfig(300_000, 250, 2e-3, 0.0, ema_halflife_images=(10_000.0,))
    start = initialised(MLP(64, 2), (2,), None, 0)
    of = target_of(embedding((Pixels(),), base(), "fp32"), Independent(data), flip=False, clip=False, device=CPU)
    chosen_ending = ending(distance=PseudoHuber(), weight=3.0, start=0.5, real=250)
    objective = chosen_ending.objective(Stored(Pairs(x0, x1, None)), of, batch_size=250, **OPTIONS)
    state = new_state(start, config)
    list(train(state, objective, config, seed=0))
    field = network_field(take_average(state).requires_grad_(False), "fp32")
    fresh = torch.randn(4000, 2, generator=torch.Generator().manual_seed(9))
    pairs = energy_distance(x1, data).value
    for steps in (1, 4):
        found = energy_distance(integrate(field, fresh, uniform_grid(steps), SOLVERS["euler"]), data).value
        assert found < pairs / 3, steps


@pytest.mark.parametrize(
    "changes",
    [
        {"at_noise": 0.0},
        {"at_noise": 1.1},
        {"start": 1.0},
        {"start": -0.1},
        {"weight": 0.0},
        {"real": 1},
        {"spaces": ()},
    ],
)
def test_what_lies_outside_its_range_is_refused(changes):
    with pytest.raises(ValueError, match="matching needs"):
        ending(**changes)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="holds no pairs"):
        ending().objective(
            Stored(Pairs(torch.zeros(0, 2), torch.zeros(0, 2), None)), None, batch_size=2, **OPTIONS
        )
