"""A training stopped and taken up again, or done in stretches, is the same training, bit for bit."""

import pytest
import torch

from fmcore.disk import checkpoint
from fmcore.flow.training import new_state, train
from fmcore.models.networks import MLP
from trainings import CONFIG, NETWORKS, POINTS, fresh, objective_on, resumed, same, weights

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module", params=NETWORKS)
def run(request, tmp_path_factory):
    """An uninterrupted training: its final weights, records, and a checkpoint from every record."""
    folder, state = tmp_path_factory.mktemp("checkpoints"), fresh(request.param)
    records = []
    for record in train(state, objective_on(NETWORKS[request.param][1]), CONFIG, seed=5, every=4):
        records.append(record)
        if record.step < CONFIG.steps:
            checkpoint.save(state, folder / str(record.step))
    return request.param, weights(state), records, folder


def test_resume_from_any_record_is_exact(run):
    name, (parameters, average), records, folder = run
    assert len(records) == 6
    for i, record in enumerate(records[:-1]):
        (again, average_again), later = resumed(name, folder / str(record.step))
        assert same(parameters, again)
        assert same(average, average_again)
        assert later == records[i + 1 :]


def drop_average(state):
    for mean, parameter in zip(state.averages[0], state.network.parameters(), strict=True):
        mean.copy_(parameter.detach())


def drop_moments(state):
    for moments in state.optimizer.state.values():
        moments["exp_avg"].zero_()
        moments["exp_avg_sq"].zero_()


def drop_adam_step(state):
    for moments in state.optimizer.state.values():
        moments["step"].zero_()


def drop_position(state):
    state.step = 0


@pytest.mark.parametrize(
    ("damage", "parameters_differ"),
    [(drop_average, False), (drop_moments, True), (drop_adam_step, True), (drop_position, True)],
)
def test_resume_without_any_part_of_the_state_is_not_exact(run, damage, parameters_differ):
    """The twin of the test above: what it compares does notice what is lost."""
    name, (parameters, average), _, folder = run
    (again, average_again), _ = resumed(name, folder / "8", damage)
    assert same(parameters, again) != parameters_differ
    assert not same(average, average_again)


def test_training_does_not_read_the_global_generator(run):
    name, final, _, _ = run
    state = fresh(name)
    torch.manual_seed(4321)
    for _ in train(state, objective_on(NETWORKS[name][1]), CONFIG, seed=5, every=4):
        torch.rand(1)
    assert same(final[0], weights(state)[0])
    other = fresh(name)
    list(train(other, objective_on(NETWORKS[name][1]), CONFIG, seed=6))
    assert not same(final[0], weights(other)[0])


def test_a_finished_training_has_nothing_to_do():
    state = fresh("mlp")
    list(train(state, objective_on(POINTS), CONFIG, seed=0))
    assert list(train(state, objective_on(POINTS), CONFIG, seed=0)) == []


def test_training_in_stretches_is_training_at_once():
    whole, parts = fresh("mlp"), fresh("mlp")
    list(train(whole, objective_on(POINTS), CONFIG, seed=0))
    records = []
    for stop in (5, 6, 16, 100):
        records += train(parts, objective_on(POINTS), CONFIG, seed=0, stop=stop)
    assert [record.step for record in records] == [5, 6, 16, CONFIG.steps]
    assert same(weights(whole)[0], weights(parts)[0])


@pytest.mark.gpu
def test_training_on_a_gpu_resumes_exactly(tmp_path):
    def state():
        torch.manual_seed(0)
        return new_state(MLP(width=32, depth=1).build((2,), None).cuda(), CONFIG)

    whole, stopped, again = state(), state(), state()
    objective = objective_on(POINTS.cuda())
    list(train(whole, objective, CONFIG, seed=0))
    next(train(stopped, objective, CONFIG, seed=0, every=8))
    checkpoint.save(stopped, tmp_path)
    checkpoint.restore(again, tmp_path)
    list(train(again, objective, CONFIG, seed=0))
    assert same(weights(whole)[0], weights(again)[0])
    assert same(weights(whole)[1], weights(again)[1])
