"""Pairs that a field induces, from noise and from data."""

from functools import cache
from math import log2

import pytest
import torch

from fmcore.analytic import gaussian_field, gaussian_flow, gaussian_rectified_field, mixture_field
from fmcore.flow import rng
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import network_field
from fmcore.flow.pixels import dequantise
from fmcore.flow.times import uniform_grid
from fmcore.models.networks import MLP
from fmcore.ode.reflow import draw, generate_pairs, invert_data
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.straightness import transport_cost

pytestmark = pytest.mark.numerics

MIXTURE = mixture_field(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 1.0]]), torch.tensor([0.6, 0.4])
)


REVERSIBLE = [name for name, solver in SOLVERS.items() if solver.reversible]


def conditional(x, t, label):
    """Straight lines whose direction is the class."""
    return label[:, None].float().expand_as(x)


@cache
def built():
    torch.manual_seed(0)
    network = MLP(width=32, depth=1).build((2,), None)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    return network


def network(x, t, label):
    with torch.no_grad():
        return network_field(built(), "fp32")(x, t, None)


def pairs(field=MIXTURE, count=50, batch=8, **changes):
    settings = {"shape": (2,), "seed": 3, "grid": uniform_grid(4), "solver": SOLVERS["heun"], **changes}
    return joined(generate_pairs(field, count, batch=batch, **settings))


def joined(parts):
    x0, x1, label = zip(*parts, strict=True)
    return Pairs(torch.cat(x0), torch.cat(x1), None if label[0] is None else torch.cat(label))


def inverted(field, x1, **changes):
    settings = {"grid": uniform_grid(4), "solver": SOLVERS["heun"], "batch": 8, **changes}
    return joined(invert_data(field, x1, **settings))


def shift(x, t, label):
    return torch.ones_like(x)


def gaussian(*moments, dtype=torch.float32):
    return tuple(torch.tensor([moment], dtype=dtype) for moment in moments)


def normal(*shape, purpose="data", dtype=torch.float32):
    return rng.noise(5, purpose, 0, shape[0], shape[1:]).to(dtype)


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
    found = pairs(gaussian_field(m0, s0, m1, s1), shape=(1,), grid=uniform_grid(100), solver=SOLVERS["rk4"])
    torch.testing.assert_close(
        found.x1, gaussian_flow(m0, s0, m1, s1, found.x0, torch.ones(50)), atol=1e-4, rtol=0
    )
    straight = pairs(
        gaussian_rectified_field(m0, s0, m1, s1), shape=(1,), grid=uniform_grid(1), solver=SOLVERS["euler"]
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
        pairs(field, grid=uniform_grid(1), solver=SOLVERS["euler"])


def test_a_sample_that_half_precision_cannot_hold_is_refused():
    with pytest.raises(FloatingPointError, match="sample 0 is not finite"):
        pairs(lambda x, t, label: torch.full_like(x, 1e6), dtype=torch.float16)


def test_draw_follows_rng():
    x0, label = draw(4, 6, shape=(2, 3), seed=1, purpose="sample")
    assert label is None
    assert torch.equal(x0, rng.noise(1, "sample", 0, 10, (2, 3))[4:])


@pytest.mark.parametrize("name", SOLVERS)
def test_pairs_need_a_deterministic_solver(name):
    if SOLVERS[name].stochastic:
        with pytest.raises(ValueError, match=f"deterministic solver, got {type(SOLVERS[name]).__name__}"):
            pairs(solver=SOLVERS[name])
    else:
        torch.testing.assert_close(pairs(shift, solver=SOLVERS[name]).x1, pairs().x0 + 1)


def test_data_goes_back_against_the_field_and_not_along_it():
    data = normal(20, 3)
    found = inverted(shift, data)
    torch.testing.assert_close(found.x0, data - 1)
    assert torch.equal(found.x1, data)


def test_inverted_data_are_the_inverse_of_the_flow():
    m0, s0, m1, s1 = moments = gaussian(0.5, 2.0, 3.0, 0.2)
    data = m1 + s1 * normal(50, 1)
    found = inverted(gaussian_field(*moments), data, grid=uniform_grid(100), solver=SOLVERS["rk4"])
    torch.testing.assert_close(found.x0, m0 + s0 / s1 * (data - m1), atol=1e-3, rtol=0)
    torch.testing.assert_close(gaussian_flow(*moments, found.x0, torch.ones(50)), data, atol=1e-4, rtol=0)
    straight = inverted(gaussian_rectified_field(*moments), data, grid=uniform_grid(1), solver=SOLVERS["euler"])
    torch.testing.assert_close(straight.x0, found.x0, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_inversion_is_undone_by_sampling_at_the_solver_s_order(name):
    solver, data = SOLVERS[name], normal(16, 2, dtype=torch.float64)
    field = mixture_field(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.0, 0.5], [1.0, 1.0]], dtype=torch.float64),
        torch.tensor([0.6, 0.4], dtype=torch.float64),
    )

    def error(steps):
        found = inverted(field, data, grid=uniform_grid(steps), solver=solver, dtype=torch.float64)
        assert torch.equal(found.x1, data)
        return float((integrate(field, found.x0, uniform_grid(steps), solver) - data).square().mean().sqrt())

    coarse, fine = error(32), error(64)
    assert log2(coarse / fine) > solver.order - 0.2
    assert fine < 0.1


def test_sampling_is_undone_by_inversion_on_a_grid_that_is_not_symmetric():
    grid = uniform_grid(64) ** 1.5
    made = pairs(count=8, grid=grid, solver=SOLVERS["rk4"])
    back = inverted(MIXTURE, made.x1, grid=grid, solver=SOLVERS["rk4"])
    torch.testing.assert_close(back.x0, made.x0, atol=1e-4, rtol=0)


def test_the_grid_is_walked_from_its_end():
    """With Euler the times at which the field is asked are the grid's knots but for the first, falling."""
    asked = []

    def field(x, t, label):
        asked.append(t.unique().item())
        return torch.zeros_like(x)

    inverted(field, normal(3, 2), grid=torch.tensor([0.0, 0.25, 1.0]), solver=SOLVERS["euler"])
    assert asked == [1.0, 0.25]


def test_pixels_become_images_before_they_go_back():
    pixels = torch.arange(60, dtype=torch.uint8).reshape(5, 3, 2, 2)
    found = inverted(shift, pixels, batch=2)
    assert found.x0.dtype == found.x1.dtype == torch.float32
    assert torch.equal(found.x1, dequantise(pixels))
    torch.testing.assert_close(found.x0, dequantise(pixels) - 1)


def test_labels_of_data_reach_the_field_and_stay_with_it():
    data, label = normal(21, 2), torch.arange(21) % 4
    found = inverted(conditional, data, label=label)
    assert torch.equal(found.label, label)
    torch.testing.assert_close(found.x0, data - label[:, None])
    assert inverted(shift, data).label is None


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_data_come_back_in_batches_in_their_order(count):
    data = normal(count, 2)
    parts = list(invert_data(MIXTURE, data, grid=uniform_grid(4), solver=SOLVERS["heun"], batch=8))
    assert [len(part.x0) for part in parts] == [min(8, count - first) for first in range(0, count, 8)]
    found = joined(parts)
    assert torch.equal(found.x1, data)
    torch.testing.assert_close(found.x0, inverted(MIXTURE, data, batch=count).x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inverted_pairs_are_stored_as_asked(dtype):
    data = normal(10, 2)
    found = inverted(shift, data, dtype=dtype)
    assert found.x0.dtype == found.x1.dtype == dtype
    assert torch.equal(found.x1, data.to(dtype))
    torch.testing.assert_close(found.x0, (found.x1.float() - 1).to(dtype))  # what is stored was integrated


@pytest.mark.parametrize("index", [0, 7, 8, 21, 29])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_at_which_the_teacher_diverges_are_named(index, bad):
    data = normal(30, 2)

    def field(x, t, label):
        broken = (x == data[index]).all(1)
        return torch.where(broken[:, None], torch.full_like(x, bad), torch.zeros_like(x))

    with pytest.raises(FloatingPointError, match=f"sample {index} is not finite"):
        inverted(field, data, grid=uniform_grid(1), solver=SOLVERS["euler"])


def test_noise_that_half_precision_cannot_hold_is_refused():
    with pytest.raises(FloatingPointError, match="sample 0 is not finite"):
        inverted(lambda x, t, label: torch.full_like(x, 1e6), normal(3, 2), dtype=torch.float16)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in REVERSIBLE])
def test_a_solver_that_cannot_run_backwards_inverts_nothing(name):
    with pytest.raises(ValueError, match="from noise at 0 to data at 1 only"):
        inverted(MIXTURE, normal(3, 2), solver=SOLVERS[name])


def test_data_are_left_as_they_were():
    data = normal(9, 2)
    before = data.clone()
    inverted(MIXTURE, data)
    assert torch.equal(data, before)


@pytest.mark.gpu
def test_pairs_on_a_gpu_start_from_the_same_noise():
    here, there = pairs(), pairs(lambda x, t, label: MIXTURE(x.cpu(), t.cpu(), label).cuda(), device="cuda")
    assert torch.equal(here.x0, there.x0)
    torch.testing.assert_close(here.x1, there.x1, rtol=1e-4, atol=1e-4)
