"""Endings: how students are trained."""

from math import erf, exp, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.endings.match import Matching, energy, matching_objective
from fmcore.endings.regression import Regression
from fmcore.flow.couplings import Independent, Pairs, Stored
from fmcore.flow.fields import Convention
from fmcore.flow.losses import Squared, flow_matching_loss
from fmcore.flow.paths import LINEAR, VP
from fmcore.flow.times import KGrid
from fmcore.score.points import energy_distance

pytestmark = pytest.mark.numerics
SEED = st.integers(0, 2**31)


# Samples drawn to the data.
def test_energy_of_two_normals_is_that_of_the_closed_form():
    """Of means 0 and m: the lengths are those of folded normals."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 1, generator=generator, dtype=torch.float64)
    m = 1.5
    folded = 2 / pi**0.5 * exp(-(m**2) / 4) + m * erf(m / 2)
    assert float(energy(x, y + m)) == pytest.approx(2 * folded - 4 / pi**0.5, abs=0.05)
    assert float(energy(x, y)) == pytest.approx(0, abs=0.01)


@given(seed=SEED, shape=st.sampled_from([(1,), (3,), (1, 2, 2)]))
def test_energy_is_unbiased_per_dimension_and_blind_to_order(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in (5, 7))
    a, b = x.flatten(1), y.flatten(1)
    cross = sum((a[i] - b[j]).norm() for i in range(5) for j in range(7)) / 35
    spread = sum((a[i] - a[j]).norm() for i in range(5) for j in range(5)) / 20
    spread += sum((b[i] - b[j]).norm() for i in range(7) for j in range(7)) / 42
    torch.testing.assert_close(energy(x, y), (2 * cross - spread) / a.shape[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(energy(x.flip(0), y.flip(0)), energy(x, y))


def test_with_labels_energy_tells_swapped_classes_apart():
    x = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)])
    label = torch.arange(100) // 50
    right, swapped = energy(x, x, label, label), energy(x, x, label, 1 - label)
    assert swapped > right + 0.3
    torch.testing.assert_close(energy(x, x), energy(x, x, label, None))
    torch.testing.assert_close(energy(x, x, 0 * label, 0 * label), energy(x, x))


def test_following_energy_downhill_reaches_the_data():
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.randn(200, 2, generator=generator) * 0.1 + c for c in (-1.0, 1.0)])
    x = (torch.randn(400, 2, generator=generator) * 0.1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        energy(x, y).backward()
        optimizer.step()
    assert energy_distance(x.detach(), y).value < 0.01
    assert abs(float((x[:, 0] > 0).float().mean()) - 0.5) < 0.1


def test_samples_that_meet_have_a_slope():
    x = torch.zeros(4, 3, requires_grad=True)
    energy(x, torch.zeros(5, 3)).backward()
    assert torch.isfinite(x.grad).all()


class Still(torch.nn.Module):
    """A network whose velocity is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.v = torch.nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x, t, label):
        return self.v.expand(len(x), 2)


def matched(start=0.25, precision="fp32"):
    """The objective that the ending makes of some pairs and data, and its parts."""
    stored = Stored(Pairs(torch.randn(30, 2), torch.randn(30, 2), None))
    real = Independent(torch.randn(40, 2), None)
    ending = Regression(2, Squared(), Matching(3.0, start))
    return ending.objective(stored, real, batch_size=6, precision=precision, convention=Convention(LINEAR))


def test_matching_adds_the_energy_of_the_ends():
    network = Still()
    pairs, t, data = matched().draw(torch.Generator().manual_seed(0), 0.25)

    def field(x, t, label):
        return network(x, t, label)

    plain = flow_matching_loss(field, LINEAR, pairs, t, Squared())
    x_t = t[:, None] * pairs.x1 + (1 - t[:, None]) * pairs.x0
    ends = x_t + (1 - t[:, None]) * network.v
    torch.testing.assert_close(matched().loss(network, (pairs, t, data)), plain + 3 * energy(ends, data.x1))
    torch.testing.assert_close(matched().loss(network, (pairs, t, None)), plain)


def test_matching_begins_when_it_is_to_and_changes_no_pair_before():
    early, late = (matched().draw(torch.Generator().manual_seed(1), progress) for progress in (0.2, 0.3))
    assert early[2] is None
    assert late[2] is not None
    assert set(early[1].tolist()) <= {0.0, 0.5}


def test_a_student_without_matching_is_flow_matching_on_its_times():
    stored = Stored(Pairs(torch.randn(30, 2), torch.randn(30, 2), None))
    objective = Regression(1, Squared()).objective(
        stored, None, batch_size=6, precision="fp32", convention=Convention(LINEAR)
    )
    pairs, t = objective.draw(torch.Generator().manual_seed(0), 0.9)
    assert (t == 0).all()
    loss = objective.loss(Still(), (pairs, t))
    torch.testing.assert_close(loss, (Still().v - (pairs.x1 - pairs.x0)).square().mean(1))


def test_what_an_ending_lacks_is_refused():
    empty = Stored(Pairs(torch.zeros(0, 2), torch.zeros(0, 2), None))
    options = {"batch_size": 2, "precision": "fp32", "convention": Convention(VP())}
    with pytest.raises(ValueError, match="needs real data"):
        Regression(1, Squared(), Matching(1.0, 0.0)).objective(empty, None, **options)
    with pytest.raises(ValueError, match="holds no pairs"):
        matching_objective(empty, empty, KGrid(1), Squared(), Matching(1.0, 0.0), **options)


@pytest.mark.parametrize(("weight", "start"), [(0.0, 0.5), (-1.0, 0.5), (1.0, 1.0), (1.0, -0.1)])
def test_matching_outside_its_ranges_is_refused(weight, start):
    with pytest.raises(ValueError, match=r"matching needs weight > 0 and start in \[0, 1\)"):
        Matching(weight, start)
