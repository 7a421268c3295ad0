"""fmcore in programs: docs/library.md as it stands, `fit` on every kind of data, and what it refuses."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fmcore
from fmcore.disk.files import ArtifactError
from fmcore.flow.couplings import Independent
from library_mistakes import REFUSED
from repository import ROOT

pytestmark = pytest.mark.native

g = torch.Generator().manual_seed(0)
X1 = 0.3 * torch.randn(600, 2, generator=g) + torch.tensor([1.0, -1.0])
LABEL = torch.arange(600) % 3
SMALL = {"images": 2000, "progress": False}


class Net(nn.Module):
    """Of (x, t), with functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 32), nn.Linear(32, 2)

    def forward(self, x, t):
        h = nn.functional.silu(self.enter(torch.cat([x, t[:, None]], 1)))
        return self.leave(nn.functional.dropout(h, 0.2, self.training))


def weights(model):
    return torch.cat([p.flatten() for p in model.network.parameters()])


@pytest.mark.timeout(300)
def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/library.md").read_text()
    blocks, place = re.findall(r"```python\n(.*?)```", page, re.DOTALL), {}
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), place)
    assert place["after"].value < 0.5 * place["before"].value
    assert place["samples"].shape == (1000, 2)
    assert (place["right"][:, 0] > 0).float().mean() > 0.8
    assert torch.equal(place["again"].sample(9, 4), place["mine"].sample(9, 4))
    assert place["paths"].shape == (5, 1, 2)
    assert "after the reflow" in capsys.readouterr().out


def test_every_kind_of_data_gives_the_same_flow():
    first = fmcore.fit("mlp", X1, **SMALL)
    loaders = DataLoader(X1, 70), DataLoader(TensorDataset(X1), 70)
    for same in (X1.double(), X1.numpy(), *loaders, TensorDataset(X1), Independent(X1)):
        assert torch.equal(weights(fmcore.fit(fmcore.MLP(), same, **SMALL)), weights(first))


def test_labels_come_with_arrays_datasets_and_loaders():
    first = fmcore.fit("mlp", X1, labels=LABEL.numpy(), **SMALL)
    assert first.num_classes == 3
    loaded = fmcore.fit("mlp", DataLoader(TensorDataset(X1, LABEL), 64), **SMALL)
    assert torch.equal(weights(loaded), weights(first))
    read = fmcore.fit("mlp", TensorDataset(X1, LABEL), num_classes=3, **SMALL)
    assert torch.equal(read.sample(5, 2, label=1), read.sample(5, 2, label=1))


def test_images_are_pixels_or_floats():
    pixels = torch.randint(256, (64, 1, 8, 8), generator=g).to(torch.uint8)
    by_pixels = fmcore.fit("unet", pixels, images=128, batch_size=32, progress=False)
    by_floats = fmcore.fit("unet", pixels.float() / 127.5 - 1, images=128, batch_size=32, progress=False)
    assert torch.equal(weights(by_pixels), weights(by_floats))
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\], and those of fmcore in \[-1, 1\]"):
        fmcore.fit("unet", pixels.float() / 255, images=32, batch_size=32, progress=False)
    with pytest.warns(UserWarning, match="standardised they train better"):
        fmcore.fit("mlp", 100 * X1 + 1000, **SMALL)


def test_a_warning_names_the_callers_line(tmp_path):
    """In a process of its own: here, jaxtyping's checks put calls of theirs between `fit` and its caller."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, fmcore\nx = torch.rand(8, 2)\nfmcore.fit('mlp', 99 * x, images=8, batch_size=8)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert f"{program}:3: UserWarning: data: the values have" in done.stderr


def test_a_reflow_starts_from_its_teacher_and_leaves_it_alone():
    flow = fmcore.fit("mlp", X1, **SMALL)
    before = weights(flow)
    pairs = flow.pairs(500, 4)
    straight = fmcore.fit(flow, pairs, images=512, lr=1e-9, progress=False)
    assert torch.equal(weights(flow), before)
    torch.testing.assert_close(weights(straight), before, atol=1e-5, rtol=0)
    assert straight.manifest["rounds"] == 1
    assert straight.is_paired
    assert not flow.is_paired
    torch.testing.assert_close(flow.carry(pairs.x0[:40], 4), pairs.x1[:40])


def test_pairs_of_a_conditional_flow_carry_their_classes():
    flow = fmcore.fit("mlp", X1, labels=LABEL, label_dropout=0.2, **SMALL)
    pairs = flow.pairs(300, 2)
    assert set(pairs.label.tolist()) == {0, 1, 2}
    torch.testing.assert_close(flow.carry(pairs.x0[:9], 2, label=pairs.label[:9]), pairs.x1[:9])
    assert fmcore.fit(flow, pairs, **SMALL).num_classes == 3
    assert flow.null_label == 3


def test_a_network_of_ones_own_is_saved_and_filled_but_never_imported(tmp_path):
    model = fmcore.fit(Net(), X1, **SMALL)
    model.save(tmp_path)
    with pytest.raises(ArtifactError, match=r"its network is .*test_library:Net: make one, and give it to load"):
        fmcore.load(tmp_path)
    with pytest.raises(ArtifactError, match=r"cannot be loaded: .*Missing key"):
        fmcore.load(tmp_path, network=nn.Linear(2, 2))
    again = fmcore.load(tmp_path, network=Net())
    assert torch.equal(again.sample(7, 3), model.sample(7, 3))
    fmcore.fit("mlp", X1, **SMALL).save(tmp_path / "ours")
    with pytest.raises(ArtifactError, match="its network is of kind mlp, which fmcore builds itself"):
        fmcore.load(tmp_path / "ours", network=Net())


def test_functional_dropout_is_seeded_and_the_callers_generator_left_alone():
    def trained():
        torch.manual_seed(1)
        net = Net()
        torch.manual_seed(int(torch.randint(1000, (1,), generator=torch.Generator().manual_seed(calls.pop()))))
        there = torch.get_rng_state()
        model = fmcore.fit(net, X1, **SMALL)
        assert torch.equal(torch.get_rng_state(), there)
        return weights(model)

    calls = [1, 2]
    assert torch.equal(trained(), trained())


def test_a_model_goes_on_by_its_own_convention_only():
    flow = fmcore.fit("mlp", X1, path="cosine", **SMALL)
    assert fmcore.fit(flow, X1, path="cosine", **SMALL).convention == flow.convention
    with pytest.raises(ValueError, match=r"path: expected that of the model, .*Cosine"):
        fmcore.fit(flow, X1, **SMALL)


def test_a_source_of_ones_own():
    x0 = torch.rand(400, 2, generator=g) + 5
    model = fmcore.fit("mlp", X1, x0=x0, images=20_000, lr=3e-3, progress=False)
    assert (model.carry(x0, 16).mean(0) - X1.mean(0)).abs().max() < 0.2
    for draws in (lambda: model.sample(3, 1), lambda: model.pairs(3, 1)):
        with pytest.raises(ValueError, match=r"starts from samples, not from noise: carry\(x0"):
            draws()


@pytest.fixture(scope="module")
def answers():
    """What each mistake is answered, by a process without the tests' type checks."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/library_mistakes.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_answered_in_one_line(what, answers):
    _, kind, message = REFUSED[what]
    assert answers[what][0] == kind.__name__, answers[what]
    assert re.search(message, answers[what][1]), answers[what]
    assert "\n" not in answers[what][1]


def test_a_batch_costs_nothing_for_those_that_follow():
    """Labels of all samples were once drawn before the first."""
    model = fmcore.fit("mlp", X1, labels=LABEL, **SMALL)
    first = next(model.batches(10**12, 1))
    assert torch.equal(first, torch.cat(list(model.batches(len(first), 1))))


def test_two_sizes_of_batch_are_refused():
    objective = fmcore.flow_objective(Independent(X1), batch_size=64)
    config = fmcore.TrainConfig(images=256, batch_size=32, lr=1e-3)
    state = fmcore.flow.training.new_state(fmcore.MLP(8, 1).build((2,), None), config)
    with pytest.raises(ValueError, match="batch_size: expected that of the objective, 64, got 32"):
        next(fmcore.train(state, objective, config, seed=0))


def test_everything_is_there_without_a_further_import():
    names = dir(fmcore)
    assert {"fit", "integrate", "MLP", "flow", "score"} <= set(names)
    for name in names:
        assert getattr(fmcore, name) is not None
    for room in ("flow", "ode", "disk", "intake", "models", "export", "score"):
        files = {path.stem for path in (ROOT / "fmcore" / room).glob("*.py")} - {"__init__"}
        assert set(dir(getattr(fmcore, room))) == files
    with pytest.raises(AttributeError):
        _ = fmcore.nothing
