"""Networks, data and training loops as the GPU benchmark runs them; torchcfm's is its CIFAR-10 example."""

import copy
from itertools import count

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.on_gpu.sizes import Bench, Step
from fmcore.flow import speed
from fmcore.flow.couplings import Coupling
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.times import Uniform
from fmcore.flow.training import Objective, TrainConfig, TrainState, flow_objective, train
from fmcore.models.networks import initialised


def pixels(bench: Bench) -> Tensor:
    """8-bit images to train on, on the device; speed does not depend on what they show."""
    g = Generator().manual_seed(0)
    shape = (bench.size.images, *bench.size.shape)
    return torch.randint(256, shape, dtype=torch.uint8, generator=g).to(bench.device)


def network_of(bench: Bench, name: str) -> nn.Module:
    """The small or the large U-Net on the device."""
    return initialised(getattr(bench.size, name), bench.size.shape, None, 0).to(bench.device)


def objective_on(coupling: Coupling, batch: int, precision: str) -> Objective:
    """Plain flow matching."""
    return flow_objective(coupling, LINEAR, Uniform(), Squared(), batch_size=batch, precision=precision)


def config_of(batch: int, steps: int) -> TrainConfig:
    """A training of that many steps, with an average of the weights."""
    return TrainConfig(images=steps * batch, batch_size=batch, lr=1e-3, ema_halflife_images=(50_000.0,))


def steps_of(bench: Bench, state: TrainState, objective: Objective, batch: int) -> Step:
    """`every` steps of fmcore's loop at a call, which ends in a record as its callers see it."""
    records = train(state, objective, config_of(batch, 10**7), seed=0, every=bench.size.every)
    return lambda: next(records)


def prepared(bench: Bench, name: str, precision: str, compiling: str, *, training: bool) -> tuple[nn.Module, str]:
    """A U-Net as a run would have it, and what `speed.prepare` says of it."""
    network = network_of(bench, name)
    said = speed.prepare(network, precision, compiling, work=1e18, training=training)
    return network, said


def torchcfm_steps(bench: Bench, network: nn.Module, data: Tensor, batch: int) -> Step:
    """torchcfm's CIFAR-10 example, `every` steps at a call: workers, Adam, clipping, an average in Python."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    on_gpu = bench.device.type == "cuda"
    loader = DataLoader(
        TensorDataset(data),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=4 if on_gpu else 0,
        persistent_workers=on_gpu,
        pin_memory=on_gpu,
    )
    source = (x1 for _ in count() for (x1,) in loader)
    matcher = ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    average = copy.deepcopy(network)

    def steps() -> None:
        for _ in range(bench.size.every):
            optimizer.zero_grad()
            x1 = next(source).to(bench.device)
            t, x_t, u_t, *_ = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = torch.mean((network(x_t, t, None) - u_t) ** 2)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mine, kept = network.state_dict(), average.state_dict()
            for key in mine:
                kept[key].copy_(kept[key] * 0.9999 + mine[key] * 0.0001)

    return steps
