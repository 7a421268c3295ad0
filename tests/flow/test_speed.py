"""What makes runs faster must not change what they compute, and must say what it chose."""

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest
import torch

from fmcore.disk.pairs import map_pairs, open_pairs, seal_pairs, write_shard
from fmcore.flow import rng, speed
from fmcore.flow.couplings import Independent, Pairs, Sharded, Stored, joined, without_longest
from fmcore.flow.fields import network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.speed import eager, flops, is_out_of_memory, largest_batch, prepare
from fmcore.flow.times import Uniform, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import MLP, UNet, initialised
from fmcore.ode.solvers import SOLVERS, integrate, seeded, solve

CPU = torch.device("cpu")
UNET, IMAGE = UNet(channels=(8, 16)), (1, 8, 8)


def unet():
    return initialised(UNET, IMAGE, None, 0)


# --- choices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
def test_the_layout_of_images_changes_where_that_was_measured_to_pay(precision, training):
    network = unet()
    said = prepare(network, precision, "auto", work=1e9, training=training)
    last = network.unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == ("channels last" in said) == (training and precision == "fp32")


def test_the_layout_changes_results_by_rounding_alone():
    x, t = rng.noise(0, "x", 0, 4, IMAGE), torch.linspace(0.1, 0.9, 4)
    plain, last = unet(), unet()
    for network in (plain, last):  # its last layer starts at zero
        torch.nn.init.normal_(network.unet.conv_out.weight, generator=torch.Generator().manual_seed(0))
    prepare(last, "fp32", "off", work=0.0, training=True)
    results = []
    for network in (plain, last):
        v = network.train()(x, t, None)
        v.square().mean().backward()
        results.append((v.detach(), network.unet.conv_in.weight.grad.contiguous()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_training_keeps_the_layout_of_residual_blocks():
    """diffusers would copy each shortcut's input to the usual layout."""
    network = unet().to(memory_format=torch.channels_last).train()
    seen = []
    block = network.unet.up_blocks[-1].resnets[-1]
    block.conv_shortcut.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(torch.randn(2, *IMAGE), torch.rand(2), None)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()
    assert network.training
    assert block.dropout.training


@pytest.mark.parametrize(
    ("compiling", "work", "training", "expected"),
    [
        ("auto", 1e12, False, "not compiled (would not pay"),
        ("auto", 1e16, True, "not compiled (would not pay"),
        ("auto", 1e16, False, "compiled"),
        ("off", 1e16, False, "not compiled (switched off"),
        ("on", 1.0, True, "compiled"),
    ],
)
def test_only_long_runs_are_compiled(monkeypatch, compiling, work, training, expected):
    network, compiled = initialised(MLP(width=8, depth=1), (2,), None, 0), []
    monkeypatch.setattr(network, "compile", lambda: compiled.append(True))
    monkeypatch.setattr(speed, "which", lambda name: name)
    said = prepare(network, "fp32", compiling, work=work, training=training)
    assert expected in said.split(", ", 1)[1]
    assert bool(compiled) == (expected == "compiled")


def test_without_a_compiler_auto_goes_on_and_on_is_refused(monkeypatch):
    monkeypatch.setattr(speed, "which", lambda name: None)
    network = initialised(MLP(width=8, depth=1), (2,), None, 0)
    assert "no C++ compiler" in prepare(network, "fp32", "auto", work=1e16, training=False)
    with pytest.raises(ValueError, match=r"compile: on needs a C\+\+ compiler"):
        prepare(network, "fp32", "on", work=1.0, training=False)
    with pytest.raises(ValueError, match="unknown compile 'yes'"):
        prepare(network, "fp32", "yes", work=1.0, training=False)


def test_a_compiled_network_has_a_twin_that_is_not():
    def refuses(graph, inputs):
        raise AssertionError("compiled")

    network = initialised(MLP(width=8, depth=1), (2,), None, 0)
    x, t = torch.randn(3, 2), torch.rand(3)
    expected = network(x, t, None)
    assert eager(network) is network
    network.compile(backend=refuses)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        network(x, t, None)
    assert torch.equal(eager(network)(x, t, None), expected)


@pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, on the way
def test_a_compiled_network_samples_and_trains_like_the_plain_one(tmp_path):
    """In a process of its own, because the type checks of the test run are not for compiling."""
    script = """
import torch
from fmcore.flow.fields import network_field
from fmcore.models.networks import MLP, initialised
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.flow.speed import prepare
from fmcore.flow.times import uniform_grid

plain, fast = (initialised(MLP(width=16, depth=1), (2,), None, 0) for _ in range(2))
for network in (plain, fast):
    torch.nn.init.normal_(network.leave.weight, generator=torch.Generator().manual_seed(0))
print(prepare(fast, "fp32", "on", work=1.0, training=True))
x0, label = torch.randn(8, 2), None
ends = [integrate(network_field(n, "fp32"), x0, uniform_grid(4), SOLVERS["heun"]) for n in (plain, fast)]
torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
for network in (plain, fast):
    network(x0, torch.rand(8, generator=torch.Generator().manual_seed(1)), None).square().mean().backward()
torch.testing.assert_close(*(n.leave.weight.grad for n in (plain, fast)), rtol=1e-4, atol=1e-5)
assert list(plain.state_dict()) == list(fast.state_dict())
"""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert ", compiled" in done.stdout


def test_flops_are_two_for_each_weight_that_is_multiplied():
    network = initialised(MLP(width=16, depth=2), (2,), None, 0)
    matrices = sum(p.numel() for p in network.parameters() if p.ndim == 2)
    assert flops(network, (2,), None) == 2 * matrices


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 32, 32), (3, 256, 256)])
def test_batches_on_a_cpu_are_powers_of_two_that_shrink_with_the_sample(shape):
    batch = largest_batch(lambda count: pytest.fail("nothing to try on a CPU"), shape, CPU)
    assert batch in {2**k for k in range(4, 11)}
    assert batch in (16, 1024) or batch * torch.Size(shape).numel() <= 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    script = """
import resource, sys, torch
from fmcore.flow.speed import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def step():
    return [torch.ones(2**20).exp().sum() for _ in range(5)]
for _ in range(10):  # the heap grows to what the steps need
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library")
    faults = [
        int(
            subprocess.run([sys.executable, "-c", script, *how], capture_output=True, text=True, check=True).stdout
        )
        for how in ([], ["keep"])
    ]
    assert faults[1] < 0.2 * faults[0]


# --- memory that runs out -----------------------------------------------------------------------------------


class Narrow:
    """A field that has room for a few samples only."""

    def __init__(self, room, error):
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, x, t, label):
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error
        return x * t[:, None] + (0 if label is None else label[:, None])


ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory"),
    "host": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_batch_that_does_not_fit_is_halved(name, error):
    x, label = torch.randn(13, 3), torch.arange(13)
    wide, narrow = Narrow(13, None), Narrow(4, ERRORS[error])
    solver = seeded(SOLVERS[name], 3, 40)
    whole = integrate(wide, x, uniform_grid(4), solver, label)
    assert torch.equal(solve(narrow, x, uniform_grid(4), solver, label), whole)
    assert max(size for size in narrow.sizes if size <= 4) >= 3


def test_memory_for_not_even_one_sample_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        solve(Narrow(0, ERRORS["gpu"]), torch.zeros(4, 2), uniform_grid(1), SOLVERS["euler"])


def test_other_errors_are_not_taken_for_it():
    assert all(map(is_out_of_memory, ERRORS.values()))
    field = Narrow(0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        solve(field, torch.zeros(4, 2), uniform_grid(1), SOLVERS["euler"])
    assert field.sizes == [4]


# --- batches in parts, pairs on disk ------------------------------------------------------------------------


CONFIG = TrainConfig(images=96, batch_size=24, lr=1e-2, ema_halflife_images=(30.0,))


def trained(config, labels=False):
    label = torch.arange(50) % 3 if labels else None
    x1 = rng.noise(0, "data", 0, 50, (2,))
    coupling = Independent(x1, label)
    objective = flow_objective(
        coupling, LINEAR, Uniform(), Squared(), batch_size=config.batch_size, precision="fp32"
    )
    state = new_state(initialised(MLP(width=16, depth=1), (2,), 3 if labels else None, 0), config)
    return list(train(state, objective, config, seed=1, every=1)), list(state.network.parameters())


@pytest.mark.parametrize("parts", [2, 3, 24])
@pytest.mark.parametrize("labels", [True, False])
def test_a_batch_in_parts_trains_like_the_whole(parts, labels):
    records, weights = trained(CONFIG, labels=labels)
    again, same = trained(replace(CONFIG, accumulate=parts), labels=labels)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(records), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(same, weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("parts", [0, 5, 48])
def test_parts_that_do_not_divide_a_batch_are_refused(parts):
    with pytest.raises(ValueError, match=rf"accumulate \(={parts}\) must divide batch_size \(=24\)"):
        replace(CONFIG, accumulate=parts)


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def folder(request, tmp_path):
    """Three shards of unequal length, with labels."""
    shards, start = [], 0
    for count in (20, 20, 7):
        x0, x1 = (rng.noise(0, side, start, count, (3, 4)).to(request.param) for side in ("x0", "x1"))
        shards.append(write_shard(tmp_path, start, [Pairs(x0, x1, torch.arange(start, start + count))]))
        start += count
    seal_pairs(tmp_path, shards, {})
    return tmp_path


@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_pairs_on_disk_are_drawn_like_those_in_memory(folder, dropped):
    parts, _ = map_pairs(folder)
    mapped = without_longest(Sharded(parts), dropped)
    stored = without_longest(Stored(open_pairs(folder)[0]), dropped)
    assert len(mapped) == len(stored) == round(47 * (1 - dropped))
    for k in range(5):
        a, b = (coupling(64, rng.generator(0, "train", k)) for coupling in (mapped, stored))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert a.x0.dtype == torch.float32
    assert mapped.slow
    assert not stored.slow


def test_pairs_without_labels_are_drawn_from_disk_too():
    parts = tuple(Pairs(torch.full((n, 2), float(n)), torch.zeros(n, 2)) for n in (3, 5))
    drawn = Sharded(parts)(200, rng.generator(0, "train"))
    assert drawn.label is None
    assert sorted(set(drawn.x0[:, 0].tolist())) == [3.0, 5.0]
    assert len(joined(parts).x0) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_mapped_pairs_take_no_memory_of_the_process(tmp_path):
    x = torch.randn(4000, 2048)  # 33 MB each
    seal_pairs(tmp_path, [write_shard(tmp_path, 0, [Pairs(x, x)])], {})

    def private():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    del x
    before = private()
    coupling = Sharded(map_pairs(tmp_path)[0])
    coupling(16, rng.generator(0, "train"))
    assert private() - before < 10_000  # kB


def test_times_stay_float32_beside_bfloat16_networks():
    seen = []

    class Probe(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x, t, label):
            v = self.layer(x)
            seen.append((x.dtype, t.dtype, v.dtype))
            return v

    v = network_field(Probe(), "bf16")(torch.zeros(3, 2), torch.rand(3), None)
    assert seen == [(torch.float32, torch.float32, torch.bfloat16)]
    assert v.dtype == torch.float32
