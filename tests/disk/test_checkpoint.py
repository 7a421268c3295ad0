"""Resume files: whole or passed over, and only for the network they came from."""

import pytest
import torch

from fmcore.disk import checkpoint
from fmcore.disk.files import ArtifactError, read_tensors, write_tensors
from fmcore.disk.kept import keep_tensors
from fmcore.flow.training import Objective, TrainConfig, new_state, train
from fmcore.models.networks import MLP

CONFIG = TrainConfig(images=60, batch_size=10, lr=1e-2, ema_halflife_images=(20.0, 80.0))


def state(width=8, depth=1, seed=0):
    torch.manual_seed(seed)
    return new_state(MLP(width=width, depth=depth).build((2,), None), CONFIG)


def draw(generator, progress):
    return torch.randn(10, 2, generator=generator), torch.rand(10, generator=generator)


objective = Objective(draw, lambda network, batch: (network(*batch, None) - batch[0]).square().mean(1))


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 2, 4 and 6."""
    trained = state()
    for _ in train(trained, objective, CONFIG, seed=0, every=2):
        checkpoint.save(trained, tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept(folder):
    assert names(folder) == ["step-0000000004.safetensors", "step-0000000006.safetensors"]
    found = state(seed=1)
    assert checkpoint.restore(found, folder) == []
    assert found.step == 6


def test_nothing_to_restore_changes_nothing(tmp_path):
    found, same = state(), state()
    assert checkpoint.restore(found, tmp_path / "never made") == []
    assert found.step == 0
    assert all(
        torch.equal(a, b) for a, b in zip(found.network.parameters(), same.network.parameters(), strict=True)
    )


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def lose_sum(path):
    write_tensors(path, read_tensors(path))


def another_s_sum(path):
    """What was right when it had another name."""
    keep_tensors(path.with_name("step-0000000005.safetensors"), read_tensors(path))
    path.with_name("step-0000000005.safetensors").replace(path)


DAMAGE = [flip_a_bit, cut, empty, lose_sum, another_s_sum]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(folder, damage):
    damage(folder / "step-0000000006.safetensors")
    found = state(seed=1)
    (line,) = checkpoint.restore(found, folder)
    assert "step-0000000006.safetensors is damaged" in line
    assert found.step == 4
    list(train(found, objective, CONFIG, seed=0))
    whole = state()
    list(train(whole, objective, CONFIG, seed=0))
    for found_average, average in zip(found.averages, whole.averages, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found_average, average, strict=True))


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_a_whole_checkpoint_nobody_starts_again_silently(folder, damage):
    for path in list(folder.glob("*.safetensors")):
        damage(path)
    found, same = state(seed=1), state(seed=1)
    lines = checkpoint.restore(found, folder)
    assert [line.partition(" is damaged and was passed over")[0] for line in lines] == names(folder)[::-1]
    assert found.step == 0
    assert all(map(torch.equal, found.network.parameters(), same.network.parameters()))


@pytest.mark.parametrize(("width", "depth"), [(16, 1), (8, 2), (4, 1)])
def test_another_network_s_checkpoint_is_refused(folder, width, depth):
    with pytest.raises(ArtifactError, match=r"step-0000000006.safetensors belongs to another network"):
        checkpoint.restore(state(width, depth), folder)


def test_a_checkpoint_of_fewer_weights_is_refused(folder):
    """One whose weights are the first of this network's, so that only their number tells."""
    larger = torch.nn.ModuleList([state().network, torch.nn.Linear(2, 2)])
    with pytest.raises(ArtifactError, match="another network"):
        checkpoint.restore(new_state(larger, CONFIG), folder)


def test_no_pickle_is_written(folder):
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert data[8 : 8 + length].strip().startswith(b"{")
