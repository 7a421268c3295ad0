"""Endings: how students are trained."""

import pytest
import torch

from fmcore.endings import ENDINGS
from fmcore.endings.consistency import Consistency
from fmcore.endings.regression import Regression
from fmcore.flow.couplings import Pairs, Stored
from fmcore.flow.fields import Convention
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR

pytestmark = pytest.mark.numerics


class Still(torch.nn.Module):
    """A network whose velocity is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.v = torch.nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x, t, label):
        return self.v.expand(len(x), 2)


@pytest.mark.parametrize("k", [1, 2])
def test_regression_is_flow_matching_on_its_times(k):
    stored = Stored(Pairs(torch.randn(30, 2), torch.randn(30, 2), None))
    objective = Regression(k, Squared()).objective(
        stored, batch_size=60, precision="fp32", convention=Convention(LINEAR)
    )
    pairs, t = objective.draw(torch.Generator().manual_seed(0), 0.9)
    assert set(t.tolist()) == {i / k for i in range(k)}
    loss = objective.loss(Still(), (pairs, t))
    torch.testing.assert_close(loss, (Still().v - (pairs.x1 - pairs.x0)).square().mean(1))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="regression needs k >= 1, got 0"):
        Regression(0, Squared())


def test_endings_are_found_by_their_names():
    names = {name: kind.__dataclass_fields__["name"].default for name, kind in ENDINGS.items()}
    assert list(names) == list(names.values())
    assert {"regression", "matched", "consistency", "shortcut", "lagrangian", "meanflow"} <= set(names)


# --- consistency --------------------------------------------------------------------------------------------


def consistency(coupling, **more):
    ending = Consistency(Squared(), **{"at_noise": 0.25, "halvings": 3, **more})
    return ending.objective(coupling, batch_size=400, precision="fp32", convention=Convention(LINEAR))


def lines():
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    return Stored(Pairs(x0, 1.5 + 0.4 * x0, None))


class Straight(torch.nn.Module):
    """The velocity of the lines, times `factor`."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, t, label):
        x0 = (x - 1.5 * t[:, None]) / (1 - 0.6 * t[:, None])
        return self.factor * (1.5 - 0.6 * x0)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6, 0.99])
def test_ends_stay_the_same_along_lines_that_do_not_cross(progress):
    of = consistency(lines())
    batch = of.draw(torch.Generator().manual_seed(0), progress)
    assert of.loss(Straight(), batch).mean() < 1e-7
    assert of.loss(Straight(1.1), batch).mean() > 1e-3 * of_gap(progress)


def of_gap(progress):
    return Consistency(Squared(), 0.25, 3).gap(progress)


def test_the_gap_is_halved_stage_by_stage_and_begins_with_the_data():
    gaps = [of_gap(p / 1000) for p in range(1000)]
    assert sorted(set(gaps), reverse=True) == [1.0, 0.5, 0.25, 0.125]
    assert gaps == sorted(gaps, reverse=True)
    _, t, s = consistency(lines()).draw(torch.Generator().manual_seed(0), 0.5)
    torch.testing.assert_close(s, t + of_gap(0.5) * (1 - t))
    assert (t[:100] == 0).all()


def test_with_the_data_as_the_later_end_it_is_flow_matching():
    stored = Stored(Pairs(torch.randn(30, 2), torch.randn(30, 2), None))
    of = consistency(stored)
    batch = of.draw(torch.Generator().manual_seed(0), 0.0)
    assert (batch.s == 1).all()
    wanted = (Still().v - (batch.pairs.x1 - batch.pairs.x0)).square().mean(1)
    torch.testing.assert_close(of.loss(Still(), batch), wanted, rtol=1e-3, atol=1e-4)


def test_the_later_end_is_a_constant():
    """The slope is that of the earlier end alone: by differences, with the later one held."""
    of = consistency(lines())
    batch = of.draw(torch.Generator().manual_seed(0), 0.99)
    network, held = Straight(1.1), Straight(1.1)
    of.loss(network, batch).mean().backward()
    (x0, x1, _), t, s = batch
    x_t, x_s = (x0 + time[:, None] * (x1 - x0) for time in (t, s))
    target = (x_s + (1 - s)[:, None] * held(x_s, s, None) - x_t) / (1 - t)[:, None]

    def loss(factor):
        return (Straight(factor)(x_t, t, None) - target).square().mean().item()

    assert network.factor.grad.item() == pytest.approx((loss(1.11) - loss(1.09)) / 0.02, rel=1e-2)


@pytest.mark.parametrize("wrong", [{"at_noise": -0.1}, {"at_noise": 1.1}, {"halvings": 0}])
def test_shares_and_halvings_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=r"consistency needs at_noise in \[0, 1\] and halvings >= 1"):
        consistency(lines(), **wrong)
