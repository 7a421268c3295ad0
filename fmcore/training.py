"""One training loop, for the base flow, every reflow round, the distilled student and the feature extractor.

What is trained is an *objective*: a function of the network and a generator that returns a loss per sample.
`flow_objective` makes the flow-matching one; reflow is the same objective on stored pairs, k-step
distillation the same with times on a k-grid. The loop yields, and its caller logs, saves and stops.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from fmcore import ema, rng
from fmcore.couplings import Coupling
from fmcore.fields import network_field
from fmcore.losses import Distance, flow_matching_loss
from fmcore.paths import ProbPath
from fmcore.times import TimeSampler

Objective = Callable[[nn.Module, Generator], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; budgets are counted in images (samples), not steps or seconds.

    Main arguments:
        images: images to see in all, repeats included.
        batch_size: images a step.
        lr: AdamW's learning rate after warm-up.
        lr_final: share of lr left at the end, reached along a cosine; 1 keeps it constant.

    Other arguments:
        warmup_images: images over which lr rises linearly from 0.
        weight_decay: AdamW's decoupled weight decay.
        clip_norm: largest gradient norm; larger gradients are scaled down to it.
        ema_halflife_images, ema_rampup: see `fmcore.ema.decay`.
    """

    images: int
    batch_size: int
    lr: float
    lr_final: float = 1.0
    warmup_images: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_halflife_images: float = 0.0
    ema_rampup: float = 0.05

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.images < self.batch_size:
            raise ValueError(f"images (={self.images}) must be at least batch_size (={self.batch_size}) >= 1")
        if self.lr <= 0 or self.clip_norm <= 0:
            raise ValueError(f"lr (={self.lr}) and clip_norm (={self.clip_norm}) must be positive")
        if not 0 <= self.lr_final <= 1:
            raise ValueError(f"lr_final (={self.lr_final}) must lie in [0, 1]")
        if min(self.warmup_images, self.weight_decay, self.ema_halflife_images, self.ema_rampup) < 0:
            raise ValueError("warmup_images, weight_decay, ema_halflife_images and ema_rampup must be >= 0")

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole training."""
        return self.images // self.batch_size

    def lr_at(self, step: int) -> float:
        """The learning rate of step number `step`, a pure function of it."""
        images = (step + 1) * self.batch_size
        warm = min(1.0, images / self.warmup_images) if self.warmup_images else 1.0
        falling = 0.5 * (1 + cos(pi * step / self.steps))
        return self.lr * warm * (self.lr_final + (1 - self.lr_final) * falling)


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became NaN or infinite; nothing of that step was kept."""


class Record(NamedTuple):
    """What the loop says every `every` steps: means over them. `images` counts all images seen so far."""

    step: int
    images: int
    loss: float
    grad_norm: float
    lr: float


@dataclass
class TrainState:
    """All that training changes: the network, its EMA weights, the optimizer and the steps done."""

    network: nn.Module
    average: list[Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0


def new_state(network: nn.Module, config: TrainConfig) -> TrainState:
    """A fresh state around a network, whose weights are also the start of the average."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True
    )
    return TrainState(network, [p.detach().clone() for p in parameters], optimizer)


def flow_objective(
    coupling: Coupling,
    path: ProbPath,
    times: TimeSampler,
    distance: Distance,
    *,
    batch_size: int,
    precision: str,
) -> Objective:
    """The flow-matching loss on pairs drawn with replacement from a coupling."""
    if not len(coupling):
        raise ValueError("there is nothing to train on: the coupling holds no pairs")

    def objective(network: nn.Module, generator: Generator) -> Tensor:
        index = torch.randint(len(coupling), (batch_size,), generator=generator, device=generator.device)
        pairs = coupling(index, generator)
        t = times(batch_size, generator)
        return flow_matching_loss(network_field(network, precision), path, pairs, t, distance)

    return objective


def train(
    state: TrainState, objective: Objective, config: TrainConfig, *, seed: int, every: int = 50
) -> Iterator[Record]:
    """Trains `state` in place and yields a `Record` after every `every` steps and after the last.

    The state is whole whenever a record is yielded: saving it then, and calling `train` with it later, gives
    the weights that an uninterrupted run gives, bit for bit on the same CPU and thread count, because step k
    draws from `generator(seed, "train", k)` and nothing else carries over.

    Raises:
        NonFiniteLoss: on the CPU before the offending update; on a GPU, where asking each step would stall
            it, before the record that would have included it is yielded.
    """
    network, optimizer = state.network, state.optimizer
    parameters = list(network.parameters())
    device = parameters[0].device
    network.train()
    window: list[tuple[Tensor, Tensor]] = []
    while state.step < config.steps:
        lr = config.lr_at(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        draws = rng.generator(seed, "train", state.step, device)
        # Dropout knows only torch's global generator.
        torch.manual_seed(rng.generator(seed, "dropout", state.step).initial_seed())
        loss = objective(network, draws).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
        window.append((loss.detach(), grad_norm))
        if device.type == "cpu":
            _check_finite(loss.item(), grad_norm.item(), state.step, lr)
        optimizer.step()
        seen = state.step * config.batch_size
        keep = ema.decay(config.batch_size, seen, config.ema_halflife_images, config.ema_rampup)
        ema.update(state.average, parameters, keep)
        state.step += 1
        if state.step % every == 0 or state.step == config.steps:
            losses, norms = (torch.stack(column).mean().item() for column in zip(*window, strict=True))
            _check_finite(losses, norms, state.step, lr)
            window.clear()
            yield Record(state.step, state.step * config.batch_size, losses, norms, lr)


def _check_finite(loss: float, grad_norm: float, step: int, lr: float) -> None:
    if not (isfinite(loss) and isfinite(grad_norm)):
        raise NonFiniteLoss(
            f"loss {loss} and gradient norm {grad_norm} at step {step} with lr {lr:.2e}: "
            "expected finite numbers; lower lr or clip_norm"
        )


@torch.no_grad()
def averaged(state: TrainState) -> nn.Module:
    """The network in evaluation mode with its EMA weights loaded; do not train the state after."""
    for parameter, mean in zip(state.network.parameters(), state.average, strict=True):
        parameter.copy_(mean)
    return state.network.eval()
