"""Pairs that a field induces."""

import pytest
import torch

from fmcore import rng
from fmcore.analytic import gaussian_field, gaussian_flow, gaussian_rectified_field, mixture_field
from fmcore.couplings import Pairs
from fmcore.fields import network_field
from fmcore.metrics import transport_cost
from fmcore.networks import MLP
from fmcore.reflow import draw, generate_pairs
from fmcore.solvers import SOLVERS
from fmcore.times import uniform_grid

MIXTURE = mixture_field(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 1.0]]), torch.tensor([0.6, 0.4])
)


def conditional(x, t, label):
    """Straight lines whose direction is the class."""
    return label[:, None].float().expand_as(x)


def network(x, t, label):
    torch.manual_seed(0)
    built = MLP(width=32, depth=1).build((2,), None)
    for parameter in built.parameters():
        parameter.data.normal_(std=0.3)
    with torch.no_grad():
        return network_field(built, "fp32")(x, t, None)


def pairs(field=MIXTURE, count=50, batch=8, **changes):
    settings = {"shape": (2,), "seed": 3, "grid": uniform_grid(4), "tableau": SOLVERS["heun"], **changes}
    parts = list(generate_pairs(field, count, batch=batch, **settings))
    label = None if parts[0].label is None else torch.cat([p.label for p in parts])
    return Pairs(torch.cat([p.x0 for p in parts]), torch.cat([p.x1 for p in parts]), label)


@pytest.mark.parametrize("field", [MIXTURE, network], ids=["mixture", "network"])
@pytest.mark.parametrize("start", [0, 8, 24, 48])
def test_pairs_do_not_depend_on_where_one_starts(field, start):
    whole, rest = pairs(field), pairs(field, start=start)
    assert torch.equal(whole.x0[start:], rest.x0)
    assert torch.equal(whole.x1[start:], rest.x1)


@pytest.mark.parametrize("field", [MIXTURE, network], ids=["mixture", "network"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 49])
def test_pairs_do_not_depend_on_how_many_are_asked_for(field, count):
    whole, few = pairs(field), pairs(field, count=count)
    assert len(few.x0) == len(few.x1) == count
    assert torch.equal(whole.x0[:count], few.x0)
    assert torch.equal(whole.x1[:count], few.x1)


def test_pairs_in_other_batches_are_the_same_up_to_rounding():
    a, b = pairs(network, batch=8), pairs(network, batch=7)
    assert torch.equal(a.x0, b.x0)
    torch.testing.assert_close(a.x1, b.x1, rtol=1e-4, atol=1e-5)


def test_a_start_inside_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"start \(=9\) must be a multiple of batch \(=8\)"):
        pairs(start=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_noise_is_what_was_integrated(dtype):
    """The field is a constant, so x1 = round(x0 + 1) from the rounded x0 that is stored."""
    found = pairs(lambda x, t, label: torch.ones_like(x), dtype=dtype)
    assert found.x0.dtype == found.x1.dtype == dtype
    assert torch.equal(found.x0, rng.noise(3, "pairs", 0, 50, (2,)).to(dtype))
    torch.testing.assert_close(found.x1.float(), (found.x0.float() + 1).to(dtype).float())


def test_pairs_are_the_flow_of_the_field():
    m0, s0, m1, s1 = torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.2])
    found = pairs(gaussian_field(m0, s0, m1, s1), shape=(1,), grid=uniform_grid(100), tableau=SOLVERS["rk4"])
    torch.testing.assert_close(
        found.x1, gaussian_flow(m0, s0, m1, s1, found.x0, torch.ones(50)), atol=1e-4, rtol=0
    )
    straight = pairs(
        gaussian_rectified_field(m0, s0, m1, s1), shape=(1,), grid=uniform_grid(1), tableau=SOLVERS["euler"]
    )
    torch.testing.assert_close(straight.x1, found.x1, atol=1e-4, rtol=0)


def test_a_flow_s_coupling_costs_no_more_than_the_independent_one():
    found = pairs(count=4000, batch=1000, grid=uniform_grid(50))
    assert transport_cost(found.x0, found.x1).mean() < 0.9 * transport_cost(found.x0, found.x1.roll(1, 0)).mean()


def test_seeds_and_purposes_give_other_pairs():
    a, b, c = pairs().x0, pairs(seed=4).x0, pairs(purpose="held-out").x0
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_labels_come_from_the_pool_at_its_frequencies_and_reach_the_field():
    pool = torch.tensor([1, 5, 5, 5])
    found = pairs(conditional, count=2000, batch=100, labels=pool)
    assert set(found.label.tolist()) == {1, 5}
    assert abs(float((found.label == 5).float().mean()) - 0.75) < 0.05
    torch.testing.assert_close(found.x1, found.x0 + found.label[:, None])
    few = pairs(conditional, count=150, batch=100, labels=pool, start=100)
    assert torch.equal(few.label, found.label[100:150])
    assert not torch.equal(found.label[:100], found.label[100:200])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_teacher_that_diverges_is_refused_with_the_sample(bad):
    noise = rng.noise(3, "pairs", 0, 50, (2,))

    def field(x, t, label):
        broken = (x == noise[21]).all(1)
        return torch.where(broken[:, None], torch.full_like(x, bad), torch.zeros_like(x))

    with pytest.raises(FloatingPointError, match="sample 21 is not finite"):
        pairs(field, grid=uniform_grid(1), tableau=SOLVERS["euler"])


def test_a_sample_that_half_precision_cannot_hold_is_refused():
    with pytest.raises(FloatingPointError, match="sample 0 is not finite"):
        pairs(lambda x, t, label: torch.full_like(x, 1e6), dtype=torch.float16)


def test_draw_follows_rng():
    x0, label = draw(4, 6, shape=(2, 3), seed=1, purpose="sample")
    assert label is None
    assert torch.equal(x0, rng.noise(1, "sample", 0, 10, (2, 3))[4:])


@pytest.mark.gpu
def test_pairs_on_a_gpu_start_from_the_same_noise():
    here, there = pairs(), pairs(lambda x, t, label: MIXTURE(x.cpu(), t.cpu(), label).cuda(), device="cuda")
    assert torch.equal(here.x0, there.x0)
    torch.testing.assert_close(here.x1, there.x1, rtol=1e-4, atol=1e-4)
