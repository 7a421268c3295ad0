"""Every path joins its ends, and the velocity it returns is its derivative."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.paths import PATHS, expand

BATCH = st.integers(1, 5)
DIMS = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
SEED = st.integers(0, 2**31)


def ends(batch, dims, seed):
    g = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn((2, batch, *dims), generator=g, dtype=torch.float64)
    return x0, x1, torch.rand(batch, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
@given(batch=BATCH, dims=DIMS, seed=SEED)
def test_path_begins_at_x0_and_ends_at_x1(name, batch, dims, seed):
    x0, x1, t = ends(batch, dims, seed)
    torch.testing.assert_close(PATHS[name](x0, x1, torch.zeros_like(t))[0], x0)
    torch.testing.assert_close(PATHS[name](x0, x1, torch.ones_like(t))[0], x1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch.func's own use
@pytest.mark.parametrize("name", PATHS)
@given(batch=BATCH, dims=DIMS, seed=SEED)
def test_velocity_is_the_derivative(name, batch, dims, seed):
    x0, x1, t = ends(batch, dims, seed)
    _, u_t = PATHS[name](x0, x1, t)
    _, derivative = torch.func.jvp(lambda t: PATHS[name](x0, x1, t)[0], (t,), (torch.ones_like(t),))
    assert u_t.shape == x0.shape
    torch.testing.assert_close(u_t, derivative)


@pytest.mark.parametrize("name", PATHS)
@given(batch=BATCH, dims=DIMS, seed=SEED)
def test_each_sample_has_its_own_time(name, batch, dims, seed):
    x0, x1, t = ends(batch, dims, seed)
    together = PATHS[name](x0, x1, t)
    alone = [PATHS[name](x0[i : i + 1], x1[i : i + 1], t[i : i + 1]) for i in range(batch)]
    for joined, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(joined, torch.cat(parts))


def test_linear_path_by_hand():
    x_t, u_t = PATHS["linear"](torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.25]))
    assert (x_t.item(), u_t.item()) == (4.0, 8.0)


@given(batch=BATCH, dims=DIMS)
def test_expand_lines_time_up_with_the_batch(batch, dims):
    t = torch.arange(batch, dtype=torch.float32)
    wide = (expand(t, torch.zeros(batch, *dims)) + torch.zeros(batch, *dims)).reshape(batch, -1)
    assert torch.equal(wide, t[:, None].expand_as(wide))
