"""Flow maps whose ends are matched to data: the objective written out, its slope in closed form."""

from math import isfinite

import pytest
import torch

from exact_maps import MEAN, STD, ExactMap
from fmcore.endings import ENDINGS, matching_of
from fmcore.endings.maps import MapEnding
from fmcore.endings.matching import Matching
from fmcore.endings.spaces import Pixels, energy, scale_of
from fmcore.endings.target import target_of
from fmcore.flow.couplings import Independent, Pairs, Stored
from fmcore.flow.fields import OURS
from fmcore.flow.losses import Squared
from fmcore.flow.training import TrainConfig, new_state, train

pytestmark = pytest.mark.numerics
MAPS = {name: kind for name, kind in ENDINGS.items() if issubclass(kind, MapEnding)}
every = pytest.mark.parametrize("name", MAPS)
OPTIONS = {"precision": "fp32", "convention": OURS}
MATCH = {"at_noise": 0.75, "start": 0.25, "weight": 3.0, "real": 40, "spaces": (Pixels(),)}


def ending(name, **changes):
    return MAPS[name](Squared(), 0.5, Matching(**{**MATCH, **changes}))


def target(count=3000, **more):
    x1 = MEAN + STD * torch.randn(count, 1, generator=torch.Generator().manual_seed(5)).double()
    data = Independent(x1, **more)
    return target_of(lambda x, _: [x], data, flip=False, clip=False, device=torch.device("cpu"))


def stored(count=500, label=None):
    x0 = torch.randn(count, 1, generator=torch.Generator().manual_seed(2))
    return Stored(Pairs(x0, MEAN + STD * x0, label))


@every
def test_the_loss_is_the_ending_s_own_and_the_energies_of_both_groups(name):
    whole, network = target(), ExactMap(independent=False, wrong="swapped times")
    with_data = ending(name).objective(stored(), whole, batch_size=40, **OPTIONS)
    batch = with_data.draw(torch.Generator().manual_seed(0), 0.5)
    plain = MAPS[name](Squared(), 0.5).objective(stored(), batch_size=40, **OPTIONS)
    alone = plain.draw(torch.Generator().manual_seed(0), 0.5)
    assert torch.equal(alone.t, batch.t)
    assert batch.middle.unique().numel() == 1
    x, t = torch.cat([batch.diagonal.x0, batch.off_diagonal.x0]).double(), float(batch.middle[0])
    (drawn, _), scale = batch.real, scale_of(whole.data.x1, None)

    def carried(x, t, s):
        return x + (s - t) * network(x, torch.full((len(x),), t), None, torch.full((len(x),), s))

    ends = (carried(x[:30], 0.0, 1.0), carried(carried(x[30:], 0.0, t).detach(), t, 1.0))
    wanted = plain.loss(network, alone).mean()
    for of_group in ends:
        wanted = wanted + 3.0 * energy(of_group, whole.data.x1[drawn], scale)
    torch.testing.assert_close(with_data.loss(network, batch).double(), wanted.double(), rtol=1e-4, atol=1e-6)
    for mistaken in (
        batch._replace(middle=batch.middle * 0.5),
        batch._replace(real=((drawn + 1) % 3000, None)),
        batch._replace(off_diagonal=batch.off_diagonal._replace(x0=batch.off_diagonal.x0 + 0.3)),
    ):
        assert abs(float((with_data.loss(network, mistaken) - wanted).detach())) > 1e-5


@every
def test_before_its_start_or_without_data_it_is_the_plain_ending(name):
    plain = MAPS[name](Squared(), 0.5).objective(stored(), batch_size=40, **OPTIONS)
    early, without = (ending(name).objective(stored(), of, batch_size=40, **OPTIONS) for of in (target(), None))
    network = ExactMap(independent=False, wrong="swapped times")
    for of, progress in ((early, 0.2), (without, 0.5)):
        batch = of.draw(torch.Generator().manual_seed(0), progress)
        assert batch.real is None
        assert torch.equal(
            of.loss(network, batch), plain.loss(network, plain.draw(torch.Generator().manual_seed(0), 0))
        )


def slope(name, network, weight):
    """The slope of the loss by `off` and its error, over pairs drawn at random."""
    found, whole = [], target()
    of = ending(name, weight=weight, real=500).objective(
        Independent(whole.data.x1.float()), whole, batch_size=400, **OPTIONS
    )
    for seed in range(30):
        network.off.grad = None
        of.loss(network, of.draw(torch.Generator().manual_seed(seed), 0.5)).mean().backward()
        found.append(network.off.grad.clone())
    found = torch.stack(found)
    return found.mean(), found.std() / len(found) ** 0.5


@every
def test_the_exact_map_stays_where_it_is(name):
    """Its ends are distributed as the data, so matching pulls it nowhere."""
    mean, error = slope(name, ExactMap(independent=True), 10.0)
    assert abs(mean) < 4 * error


@every
def test_a_wrong_map_is_pulled_by_the_data(name):
    network = ExactMap(independent=True)
    with torch.no_grad():
        network.off += 0.5
    pulls = [slope(name, network, weight)[0] for weight in (1e-6, 10.0)]
    assert pulls[1] > 2 * pulls[0] > 0


@every
def test_parts_of_a_batch_are_split_alike_and_classes_are_compared(name):
    label = torch.arange(3000) % 3
    of = ending(name).objective(stored(label=torch.arange(500) % 3), target(label=label), batch_size=40, **OPTIONS)
    batch = of.draw(torch.Generator().manual_seed(0), 0.5)
    drawn, real_label = batch.real
    assert torch.equal(real_label, label[drawn])
    assert len(batch.middle) == 40
    assert torch.isfinite(of.loss(ExactMap(independent=True), batch))


@every
def test_a_batch_in_parts_of_uneven_lengths_is_trained_on(name):
    """Of 52 pairs 26 are at s = t and 26 at s > t; the first quarters have 7 each, that of all together 13."""
    whole = target()
    network = ExactMap(independent=False, wrong="swapped times")
    of = ending(name).objective(Independent(whole.data.x1.float()), whole, batch_size=52, **OPTIONS)
    config = TrainConfig(images=208, batch_size=52, lr=1e-3, accumulate=4)
    losses = [record.loss for record in train(new_state(network, config), of, config, seed=0, every=1)]
    assert len(losses) == 4
    assert all(map(isfinite, losses))


def test_how_each_ending_matches():
    assert matching_of(ending("shortcut")).weight == 3.0
    assert matching_of(MAPS["shortcut"](Squared(), 0.5)) is None
    assert matching_of(ENDINGS["regression"](1, Squared())) is None
    with pytest.raises(ValueError, match="matching needs weight > 0"):
        ending("shortcut", weight=0.0)
