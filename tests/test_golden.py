"""Loss curves that a refactoring must leave as they are, bit for bit.

The curves were recorded with `python tests/test_golden.py`, once for each kind of processor (one can play another
with `ATEN_CPU_CAPABILITY=avx2`). Another kind, and another version of torch, rounds otherwise, so curves of other
kinds are skipped by name.
"""

import json
from pathlib import Path

import pytest
import torch

from fmcore.flow import rng
from fmcore.flow.couplings import Flipped, Independent, MinibatchOT
from fmcore.flow.losses import PseudoHuber, Squared
from fmcore.flow.paths import LINEAR, Cosine
from fmcore.flow.times import Uniform, UShaped
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.intake.known import Digits
from fmcore.intake.points import EightGaussians
from fmcore.models.networks import MLP, UNet, initialised
from repository import ROOT

pytestmark = pytest.mark.numerics

GOLDEN = ROOT / "tests/golden/loss-curves.json"
CONFIG = TrainConfig(
    images=640, batch_size=32, lr=1e-3, lr_final=0.1, warmup_images=160, ema_halflife_images=(99.0,)
)


def _digits():
    return Independent(Digits().load().x1[:512])


# network, coupling, path, times, distance
CASES = {
    "mlp, points, optimal transport": (
        MLP(width=32, depth=2, fourier=2),
        lambda: MinibatchOT(Independent(EightGaussians(count=512).load().x1)),
        LINEAR,
        Uniform(),
        Squared(),
    ),
    "mlp, digits": (MLP(width=64, depth=2), _digits, LINEAR, UShaped(4.0), PseudoHuber()),
    "unet with dropout, digits, cosine, flipped": (
        UNet(channels=(8, 16), dropout=0.2),
        lambda: Flipped(_digits()),
        Cosine(),
        Uniform(),
        Squared(),
    ),
}


def curve(name):
    """Losses and gradient norms of 20 steps in float32 on one thread."""
    network, coupling, path, times, distance = CASES[name]
    objective = flow_objective(coupling(), path, times, distance, batch_size=CONFIG.batch_size, precision="fp32")
    shape = (2,) if "points" in name else (1, 8, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state = new_state(initialised(network, shape, None, 3), CONFIG)
        return [[r.loss, r.grad_norm] for r in train(state, objective, CONFIG, seed=11, every=1)]
    finally:
        torch.set_num_threads(threads)


def here():
    """What decides how sums are rounded: torch and the kind of processor."""
    found = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    for key in ("vendor_id", "cpu family", "model"):
        found[key] = next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}\t")), "")
    return found


def kind_of(made_with):
    """A processor and a torch, in one line."""
    return " ".join(made_with.values())


RECORDED = [(kind_of(golden["made_with"]), golden["curves"]) for golden in json.loads(GOLDEN.read_text())]


@pytest.mark.parametrize(("kind", "curves"), RECORDED, ids=[kind for kind, _ in RECORDED])
@pytest.mark.parametrize("name", CASES)
def test_loss_curves_are_as_recorded(name, kind, curves):
    if kind != kind_of(here()):
        pytest.skip(f"recorded on {kind}, this is {kind_of(here())}")
    assert curve(name) == curves[name]


def test_the_loop_is_the_textbook_one():
    """The same steps written out with torch alone: equal up to rounding, wherever this runs."""
    name = "mlp, digits"
    network, coupling, path, times, distance = CASES[name]
    drawn, network = coupling(), initialised(network, (1, 8, 8), None, 3)
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(CONFIG.steps):
        generator = rng.generator(11, "train", step)
        x0, x1, _ = drawn(CONFIG.batch_size, generator)
        t = times(CONFIG.batch_size, generator)
        wide = t[:, None, None, None]
        v = network(wide * x1 + (1 - wide) * x0, t, None)
        loss = distance(v, x1 - x0, x1, t).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CONFIG.clip_norm)
        optimizer.param_groups[0]["lr"] = CONFIG.lr_at(step)
        optimizer.step()
        seen = step * CONFIG.batch_size
        keep = 0.5 ** (CONFIG.batch_size / min(99.0, 0.05 * seen)) if seen else 0.0
        average = [keep * a + (1 - keep) * p.detach() for a, p in zip(average, network.parameters(), strict=True)]
        losses.append([loss.item(), norm.item()])
    state = new_state(initialised(CASES[name][0], (1, 8, 8), None, 3), CONFIG)
    objective = flow_objective(drawn, path, times, distance, batch_size=CONFIG.batch_size, precision="fp32")
    ours = [[r.loss, r.grad_norm] for r in train(state, objective, CONFIG, seed=11, every=1)]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(state.averages[0], average, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    others = [golden for golden in json.loads(GOLDEN.read_text()) if golden["made_with"] != here()]
    made = {"made_with": here(), "curves": {name: curve(name) for name in CASES}}
    GOLDEN.write_text(json.dumps([*others, made], indent=1) + "\n")
    print(f"wrote {GOLDEN}")
