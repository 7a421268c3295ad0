"""The average of the weights, with its half-life in images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.flow import ema

pytestmark = pytest.mark.numerics


def follow(start, images, *, batch_size, halflife_images, rampup):
    """The average of something that jumps from 0 to 1 after `start` images, `images` later."""
    average = [torch.zeros(3, dtype=torch.float64)]
    for seen in range(start, start + images, batch_size):
        keep = ema.decay(batch_size, seen, halflife_images, rampup)
        ema.update(average, [torch.ones(3, dtype=torch.float64)], keep)
    return float(average[0][0])


@pytest.mark.parametrize("batch_size", [1, 10, 50])
def test_after_a_halflife_the_average_has_moved_halfway(batch_size):
    settings = {"batch_size": batch_size, "halflife_images": 100, "rampup": 0.5}
    assert follow(10_000, 100, **settings) == pytest.approx(0.5)
    assert follow(10_000, 300, **settings) == pytest.approx(1 - 1 / 8)


def test_while_ramping_up_the_average_spans_a_share_of_the_images_seen():
    """The half-life at n images is r n, so from n to 2 n the old share shrinks by 2^-(ln 2 / r)."""
    moved = follow(100_000, 100_000, batch_size=10, halflife_images=1e12, rampup=0.25)
    assert 1 - moved == pytest.approx(2 ** -(0.6931471805599453 / 0.25), rel=1e-3)


def test_the_first_step_forgets_the_initialisation():
    assert ema.decay(8, 0, 1000.0, 0.05) == 0


@given(seen=st.integers(0, 10**7))
def test_no_halflife_means_no_average(seen):
    assert ema.decay(8, seen, 0.0, 0.05) == 0


@given(keep=st.floats(0, 1), seed=st.integers(0, 100))
def test_update_is_in_place_and_exact_at_its_ends(keep, seed):
    g = torch.Generator().manual_seed(seed)
    average, current = (
        [torch.randn(4, generator=g) for _ in range(2)],
        [torch.randn(4, generator=g) for _ in range(2)],
    )
    before, held = [a.clone() for a in average], list(average)
    ema.update(average, current, keep)
    for old, new, aim, same in zip(before, average, current, held, strict=True):
        assert new is same
        torch.testing.assert_close(new, keep * old + (1 - keep) * aim)
        if keep in (0, 1):
            assert torch.equal(new, old if keep else aim)


def test_update_leaves_no_gradient_behind():
    average = [torch.zeros(2)]
    ema.update(average, [torch.nn.Parameter(torch.ones(2))], 0.5)
    assert not average[0].requires_grad
    assert average[0].tolist() == [0.5, 0.5]
