"""The training loop: its arithmetic, schedules, averages, draws ahead, and guards."""

import threading
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from fmcore.disk import checkpoint
from fmcore.flow.couplings import Independent, Pairs, Stored
from fmcore.flow.fields import Convention, network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR, PATHS, ContinuousPath
from fmcore.flow.times import Uniform, uniform_grid
from fmcore.flow.training import (
    NonFiniteLoss,
    Objective,
    TrainConfig,
    flow_objective,
    new_state,
    take_average,
    train,
)
from fmcore.models.networks import MLP
from fmcore.ode.solvers import SOLVERS, integrate
from trainings import CONFIG, DIGITS, POINTS, fresh, objective_on, same, weights

pytestmark = pytest.mark.numerics

CONTINUOUS = [path.name for path in get_args(ContinuousPath)]


def test_records_count_steps_and_images():
    state = fresh("mlp")
    records = list(train(state, objective_on(POINTS), CONFIG, seed=0, every=5))
    assert [record.step for record in records] == [5, 10, 15, 20, 22]
    assert [record.images for record in records] == [80, 160, 240, 320, 352]
    assert [record.lr for record in records] == [CONFIG.lr_at(record.step - 1) for record in records]
    single = list(train(fresh("mlp"), objective_on(POINTS), CONFIG, seed=0, every=1))
    for field in ("loss", "grad_norm"):
        each = [getattr(record, field) for record in single]
        means = [sum(each[i : i + 5]) / len(each[i : i + 5]) for i in range(0, 22, 5)]
        assert [getattr(record, field) for record in records] == pytest.approx(means, rel=1e-5)


class Bowl(torch.nn.Module):
    """One weight vector."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))


def test_loop_agrees_with_adamw_written_out():
    """Loshchilov and Hutter, algorithm 2, with warm-up, cosine, clipping and EMA, in NumPy."""
    aim, curvature = np.array([1.0, 2.0, 0.0]), np.array([4.0, 1.0, 0.1])
    config = TrainConfig(
        images=400, batch_size=10, lr=0.05, lr_final=0.2, warmup_images=100, weight_decay=0.3, clip_norm=0.7,
        ema_halflife_images=(60.0,), ema_rampup=0.5,
    )  # fmt: skip

    def loss(network, batch):
        return (torch.from_numpy(curvature) * (network.w - torch.from_numpy(aim)) ** 2).sum().expand(batch)

    objective = Objective(lambda generator, progress: config.batch_size, loss)
    state = new_state(Bowl(), config)
    records = list(train(state, objective, config, seed=0, every=1))

    w = np.array([3.0, -1.0, 0.5])
    average, m, v = w.copy(), np.zeros(3), np.zeros(3)
    for k in range(40):
        gradient = 2 * curvature * (w - aim)
        norm = np.sqrt((gradient**2).sum())
        assert records[k].grad_norm == pytest.approx(norm, rel=1e-4)
        assert records[k].loss == pytest.approx((curvature * (w - aim) ** 2).sum(), rel=1e-4)
        gradient = gradient * min(1, 0.7 / norm)
        lr = 0.05 * min(1, (k + 1) / 10) * (0.2 + 0.8 * (1 + np.cos(np.pi * k / 40)) / 2)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - lr * 0.3 * w
        w = w - lr * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        halflife = min(60.0, 0.5 * 10 * k)
        keep = 0.5 ** (10 / halflife) if halflife else 0.0
        average = keep * average + (1 - keep) * w
    assert state.network.w.tolist() == pytest.approx(w, rel=1e-4)
    assert state.averages[0][0].tolist() == pytest.approx(average, rel=1e-4)


def test_lr_warms_up_linearly_and_falls_along_a_cosine():
    config = TrainConfig(images=10_000, batch_size=10, lr=2.0, lr_final=0.1, warmup_images=100)
    assert config.steps == 1000
    assert [config.lr_at(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0], rel=1e-3)
    assert config.lr_at(500) == pytest.approx(2.0 * 0.55)
    assert config.lr_at(999) == pytest.approx(0.2, rel=1e-3)
    falling = [config.lr_at(step) for step in range(10, 1000)]
    assert falling == sorted(falling, reverse=True)
    constant = TrainConfig(images=100, batch_size=10, lr=0.5)
    assert {constant.lr_at(step) for step in range(10)} == {0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"images": 15}, r"images \(=15\) must be at least batch_size \(=16\)"),
        ({"lr": 0.0}, "lr"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"lr_final": 1.5}, r"lr_final \(=1.5\)"),
        ({"warmup_images": -1}, ">= 0"),
        ({"weight_decay": -0.1}, ">= 0"),
        ({"ema_halflife_images": (-1.0,)}, ">= 0"),
        ({"ema_halflife_images": (5.0, 5.0)}, "list each once"),
        ({"ema_halflife_images": ()}, "list each once"),
    ],
)
def test_senseless_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_an_empty_coupling_is_refused():
    with pytest.raises(ValueError, match="holds no pairs"):
        objective_on(torch.zeros(0, 2))


def poisoned(bad):
    """Pairs of which one in fifty is not a number."""
    x1 = POINTS.clone()
    x1[::50] = bad
    return objective_on(x1), CONFIG


def explosive():
    return objective_on(POINTS), replace(CONFIG, lr=1e30, warmup_images=0, weight_decay=1.0)


@pytest.mark.parametrize(
    "case",
    [lambda: poisoned(float("nan")), lambda: poisoned(float("inf")), explosive],
    ids=["nan", "inf", "huge lr"],
)
def test_a_loss_that_is_not_finite_stops_training_and_spoils_nothing(case, tmp_path):
    objective, config = case()
    state = fresh("mlp", config)
    with pytest.raises(NonFiniteLoss, match=r"at step \d+ with lr \d.*lower lr or clip_norm"):  # noqa: PT012
        for _ in train(state, objective, config, seed=0, every=1):
            checkpoint.save(state, tmp_path)
    parameters, average = weights(state)
    assert all(torch.isfinite(p).all() for p in parameters + average)
    if state.step:
        last = fresh("mlp", seed=1)
        assert checkpoint.restore(last, tmp_path) == []
        assert last.step == state.step
        assert same(weights(last)[0], parameters)


def test_bf16_trains_like_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        state = fresh("mlp")
        config = replace(CONFIG, images=16_000, batch_size=160)
        objective = objective_on(POINTS, batch_size=160, precision=precision)
        losses[precision] = [record.loss for record in train(state, objective, config, seed=0, every=25)]
        assert all(p.dtype == torch.float32 for p in state.network.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_a_conditional_network_learns_its_classes():
    """Class k is the point (4 k - 4, 1): one Euler step from noise is enough to tell."""
    label = torch.arange(300) % 3
    x1 = torch.stack([4.0 * label - 4, torch.ones(300)], 1)
    config = TrainConfig(images=64_000, batch_size=128, lr=3e-3, lr_final=0.0)
    torch.manual_seed(0)
    state = new_state(MLP(width=32, depth=1).build((2,), 3), config)
    list(train(state, objective_on(x1, label, batch_size=128), config, seed=0))
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    field = network_field(take_average(state), "fp32")
    ends = integrate(field, noise, uniform_grid(8), SOLVERS["euler"], label).detach()
    assert (ends - x1).square().sum(1).mean().sqrt() < 0.5


def test_reflow_is_the_same_training_on_stored_pairs():
    """Pairs x1 = 2 x0 + 1 do not cross: the loss falls towards 0, which no independent coupling allows."""
    x0 = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(images=100_000, batch_size=200, lr=3e-3, lr_final=0.0)
    torch.manual_seed(0)
    state = new_state(MLP(width=32, depth=1).build((2,), None), config)
    objective = flow_objective(
        Stored(Pairs(x0, 2 * x0 + 1)), LINEAR, Uniform(), Squared(), batch_size=200, precision="fp32"
    )
    records = list(train(state, objective, config, seed=0, every=100))
    assert records[-1].loss < 0.02 < records[0].loss


def test_averaged_holds_the_average_in_evaluation_mode():
    state = fresh("unet with dropout")
    list(train(state, objective_on(DIGITS), CONFIG, seed=0))
    parameters, average = weights(state)
    network = take_average(state)
    assert not network.training
    assert same([p.detach() for p in network.parameters()], average)
    assert not same(parameters, average)


def test_each_half_life_has_the_average_it_would_have_alone():
    both = replace(CONFIG, ema_rampup=1.0)
    state = fresh("mlp", both)
    list(train(state, objective_on(POINTS), both, seed=0))
    for which, halflife in enumerate(both.ema_halflife_images):
        config = replace(both, ema_halflife_images=(halflife,))
        alone = fresh("mlp", config)
        list(train(alone, objective_on(POINTS), config, seed=0))
        assert same(alone.averages[0], state.averages[which])
    assert not same(*state.averages)


def test_a_slow_coupling_is_drawn_a_step_ahead_in_a_thread_with_the_same_result(tmp_path):
    """Batches are functions of the step, so who draws them, when, and after which resume makes no difference."""
    threads = []

    def slow(objective):
        def draw(generator, progress):
            threads.append(threading.current_thread())
            return objective.draw(generator, progress)

        return objective._replace(draw=draw, slow=True)

    quick, ahead, again = fresh("mlp"), fresh("mlp"), fresh("mlp")
    objective = objective_on(POINTS)
    records = list(train(quick, objective, CONFIG, seed=0, every=4))
    assert list(train(ahead, slow(objective), CONFIG, seed=0, every=4)) == records
    assert len(threads) == CONFIG.steps
    assert threading.main_thread() not in threads
    next(train(again, slow(objective), CONFIG, seed=0, every=8))
    checkpoint.save(again, tmp_path)
    resumed = fresh("mlp", seed=3)
    checkpoint.restore(resumed, tmp_path)
    list(train(resumed, slow(objective), CONFIG, seed=0))
    for state in (ahead, resumed):
        assert same(weights(quick)[0], weights(state)[0])


def test_an_error_while_drawing_ahead_reaches_the_caller():
    def draw(generator, progress):
        raise RuntimeError("no batch today")

    with pytest.raises(RuntimeError, match="no batch today"):
        list(train(fresh("mlp"), Objective(draw, lambda network, batch: batch, slow=True), CONFIG, seed=0))


def test_progress_reaches_the_coupling():
    seen = []
    objective = objective_on(POINTS)

    def draw(generator, progress):
        seen.append(progress)
        return objective.draw(generator, progress)

    list(train(fresh("mlp"), objective._replace(draw=draw), CONFIG, seed=0))
    assert seen == [step / CONFIG.steps for step in range(CONFIG.steps)]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_path_is_learnt_and_sampled_on_the_linear_one(name):
    """Trained on its own path, a network carries noise on the linear path to the same two blobs."""
    path = PATHS[name]()
    g = torch.Generator().manual_seed(0)
    x1 = torch.where(torch.rand(4000, 1, generator=g) < 0.3, -1.5, 1.0) + 0.2 * torch.randn(4000, 1, generator=g)
    config = TrainConfig(images=200_000, batch_size=500, lr=5e-3, lr_final=0.0, ema_halflife_images=(5000.0,))
    torch.manual_seed(0)
    state = new_state(MLP(width=64, depth=1, fourier=2).build((1,), None), config)
    objective = flow_objective(Independent(x1), path, Uniform(), Squared(), batch_size=500, precision="fp32")
    list(train(state, objective, config, seed=0))
    field = network_field(take_average(state), "fp32", Convention(path))
    ends = integrate(field, torch.randn(2000, 1, generator=g), uniform_grid(64), SOLVERS["heun"])
    assert (ends < -0.25).float().mean() == pytest.approx(0.3, abs=0.05)
    assert ends[ends < -0.25].mean() == pytest.approx(-1.5, abs=0.1)
    assert ends[ends > -0.25].mean() == pytest.approx(1.0, abs=0.1)
    assert ends[ends > -0.25].std() == pytest.approx(0.2, abs=0.06)
