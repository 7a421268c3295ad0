"""One training loop, for the base flow, every reflow round, the distilled student and the feature extractor.

What is trained is an `Objective`: how a batch is drawn and the loss of a network on it.
`flow_objective` makes the flow-matching one; reflow is the same objective on stored pairs, k-step
distillation the same with times on a k-grid. The loop yields, and its caller logs, saves and stops.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from fmcore.flow import ema, rng
from fmcore.flow.couplings import Coupling, Pairs
from fmcore.flow.fields import OURS, Convention, check_precision, network_field
from fmcore.flow.losses import DISTANCES, WEIGHTINGS, Distance, flow_matching_loss
from fmcore.flow.named import named
from fmcore.flow.paths import CONTINUOUS_PATHS, LINEAR, Prediction, ProbPath
from fmcore.flow.ranks import add_up, check_same, ranks
from fmcore.flow.times import TIMES, TimeSampler


class Objective(NamedTuple):
    """What is trained: how a step's batch is drawn, and the loss of each of its samples.

    Main arguments:
        draw: the batch, from a generator and the share of the training that is done. It depends on nothing else,
            since it may be drawn a step ahead.
        loss: of a network on a batch, (B,).
        slow: drawing takes long enough to be done in a thread, one step ahead.
        batch_size: samples in a batch, which must be the training's; None where nothing says so.
    """

    draw: Callable[[Generator, float], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    slow: bool = False
    batch_size: int | None = None


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
        accumulate: parts that a batch is split into, for a batch that does not fit into memory whole.
        weight_decay: AdamW's decoupled weight decay.
        clip_norm: largest gradient norm; larger gradients are scaled down to it.
        ema_halflife_images, ema_rampup: see `fmcore.flow.ema.decay`. Each half-life gets an average of its own;
            the first average becomes the model's weights.
    """

    images: int
    batch_size: int
    lr: float
    lr_final: float = 1.0
    warmup_images: int = 0
    accumulate: int = 1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_halflife_images: tuple[float, ...] = (0.0,)
    ema_rampup: float = 0.05

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.images < self.batch_size:
            raise ValueError(f"images (={self.images}) must be at least batch_size (={self.batch_size}) >= 1")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"accumulate (={self.accumulate}) must divide batch_size (={self.batch_size})")
        if self.lr <= 0 or self.clip_norm <= 0:
            raise ValueError(f"lr (={self.lr}) and clip_norm (={self.clip_norm}) must be positive")
        if not 0 <= self.lr_final <= 1:
            raise ValueError(f"lr_final (={self.lr_final}) must lie in [0, 1]")
        if min(self.warmup_images, self.weight_decay, self.ema_rampup, *self.ema_halflife_images) < 0:
            raise ValueError("warmup_images, weight_decay, ema_halflife_images and ema_rampup must be >= 0")
        rounded = {round(halflife) for halflife in self.ema_halflife_images}  # files are named by it
        if not rounded or len(rounded) < len(self.ema_halflife_images):
            raise ValueError(f"ema_halflife_images must list each once, got {list(self.ema_halflife_images)}")

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole training."""
        return self.images // self.batch_size

    def lr_at(self, step: int) -> float:
        """The learning rate of step number `step`."""
        images = (step + 1) * self.batch_size
        warm = min(1.0, images / self.warmup_images) if self.warmup_images else 1.0
        falling = 0.5 * (1 + cos(pi * step / self.steps))
        return self.lr * warm * (self.lr_final + (1 - self.lr_final) * falling)


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became NaN or infinite; no record that includes that step was yielded."""


class Record(NamedTuple):
    """What the loop yields every `every` steps: the means of loss and gradient norm over them, and the last lr.

    `images` counts all images seen so far.
    """

    step: int
    images: int
    loss: float
    grad_norm: float
    lr: float


@dataclass
class TrainState:
    """All that training changes: the network, its averages by half-life, the optimizer and the steps done."""

    network: nn.Module
    averages: list[list[Tensor]]
    optimizer: torch.optim.AdamW
    step: int = 0


def new_state(network: nn.Module, config: TrainConfig) -> TrainState:
    """A fresh state around a network, whose weights are also the start of the average."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True
    )
    averages = [[p.detach().clone() for p in parameters] for _ in config.ema_halflife_images]
    return TrainState(network, averages, optimizer)


def flow_objective(
    coupling: Coupling,
    path: ProbPath | str = "linear",
    times: TimeSampler | str = "uniform",
    distance: Distance | str = "squared",
    *,
    batch_size: int,
    precision: str = "auto",
    convention: Convention | None = None,
    weighting: str = "none",
    predicts: Prediction = "velocity",
) -> Objective:
    """The flow-matching loss on pairs drawn with replacement from a coupling.

    Main arguments:
        path: the path trained on; it, the times and the distance are objects or their names.
        convention: what the network's output means; a velocity on that path if None. Another convention is
            trained through its conversion, so that a diffusion model's network can learn a rectified flow.
        weighting: see `fmcore.flow.losses.WEIGHTINGS`.
        predicts: what a network without a `convention` learns to predict on the path, by the distance of
            predictions; its convention is `Convention(path, predicts)` then.

    Raises:
        ValueError: for a coupling without pairs, for unknown names, and for another prediction than the velocity
            on a path whose points are not of unit scale, or of a network that has a convention.
        TypeError: for what is neither a name nor what it names.
    """
    if not isinstance(coupling, Coupling):
        raise TypeError(f"coupling: expected one, e.g. Independent(x1), got {type(coupling).__name__}")
    if not len(coupling):
        raise ValueError("there is nothing to train on: the coupling holds no pairs")
    on: ProbPath = named(path, CONTINUOUS_PATHS, "path")
    at: TimeSampler = named(times, TIMES, "times")
    apart: Distance = named(distance, DISTANCES, "distance")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    check_precision(precision)
    if predicts != "velocity" and (on.normalised or convention is not None):
        what = f"the path {on.name}" if on.normalised else "a network that has a convention"
        raise ValueError(f"predicts: expected velocity for {what}, got {predicts}")
    # A network's own output is what passes as a velocity on the linear path.
    source, to = (convention or Convention(on), on) if predicts == "velocity" else (OURS, LINEAR)
    weight = WEIGHTINGS[weighting]

    def draw(generator: Generator, progress: float) -> tuple[Pairs, Tensor]:
        return coupling(batch_size, generator, progress), at(batch_size, generator)

    def loss(network: nn.Module, batch: tuple[Pairs, Tensor]) -> Tensor:
        pairs, t = batch
        field = network_field(network, precision, source, to)
        return flow_matching_loss(field, on, pairs, t, apart, weight, predicts)

    return Objective(draw, loss, coupling.slow, batch_size)


def _batches(
    objective: Objective, config: TrainConfig, seed: int, device: torch.device, steps: range
) -> Iterator[Any]:
    """The batch of each step."""

    def draw(k: int) -> Any:
        return objective.draw(rng.generator(seed, "train", k, device), k / config.steps)

    if not (objective.slow and steps):
        yield from map(draw, steps)
        return
    # The thread draws on one core: a second OpenMP team, whose idle threads spin, made training half as fast.
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            waiting = thread.submit(draw, steps.start)
            for k in steps:
                batch = waiting.result()
                if k + 1 in steps:
                    waiting = thread.submit(draw, k + 1)
                yield batch
    finally:
        torch.set_num_threads(threads)


def train(
    state: TrainState,
    objective: Objective,
    config: TrainConfig,
    *,
    seed: int,
    every: int = 50,
    stop: int | None = None,
) -> Iterator[Record]:
    """Trains `state` in place and yields a `Record` after every `every` steps and after the last.

    If `stop` is given, training ends at that step, which counts as the last; schedules stay those of the whole.

    The state is complete whenever a record is yielded. Saved then and trained on later, it gives the weights of an
    uninterrupted run, bit for bit on the same CPU and thread count: step k draws from
    `generator(seed, "train", k)` and nothing else carries over.

    If torch.distributed was started, all its processes call this with the same state, objective and config. Each
    draws the same batch and takes its own part of it, so that N processes train as one does with `accumulate`
    N times as large, but for the last bits and for dropout.

    Raises:
        ValueError: if the batches of objective and config differ in size, or are too small to be split, and if
            processes have different states.
        NonFiniteLoss: on the CPU before the offending update; on a GPU, which a look at each step would stall,
            before the record that would have included it.
    """
    network, optimizer = state.network, state.optimizer
    parameters = list(network.parameters())
    device = parameters[0].device
    _check_agreement(state, objective, config)
    network.train()
    window: list[tuple[Tensor, Tensor]] = []
    last = config.steps if stop is None else min(stop, config.steps)
    for batch in _batches(objective, config, seed, device, range(state.step, last)):
        lr = config.lr_at(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        # A network's dropout draws from torch's global generators; the caller finds the host's as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_dropout_seed(seed, state.step))
            loss = _backward(network, objective, batch, config)
        gradients = [p.grad for p in parameters if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients, foreach=True)
        window.append((loss, grad_norm))
        if device.type == "cpu":
            _check_finite(loss.item(), grad_norm.item(), state.step, lr)
        if device.type != "cpu" or grad_norm + 1e-6 > config.clip_norm:  # comparing on a GPU would stall it
            nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, grad_norm, foreach=True)
        optimizer.step()
        seen = state.step * config.batch_size
        for average, halflife in zip(state.averages, config.ema_halflife_images, strict=True):
            ema.update(average, parameters, ema.decay(config.batch_size, seen, halflife, config.ema_rampup))
        state.step += 1
        if state.step % every == 0 or state.step == last:
            losses, norms = (torch.stack(column).mean().item() for column in zip(*window, strict=True))
            _check_finite(losses, norms, state.step, lr)
            window.clear()
            yield Record(state.step, state.step * config.batch_size, losses, norms, lr)


def _check_agreement(state: TrainState, objective: Objective, config: TrainConfig) -> None:
    """A ValueError if the batches of objective and config differ in size, or the states of the processes do."""
    if objective.batch_size not in (None, config.batch_size):
        raise ValueError(
            f"batch_size: expected that of the objective, {objective.batch_size}, got {config.batch_size} in the "
            "config"
        )
    if ranks().size > 1:
        parameters = list(state.network.parameters())
        check_same("state", [*parameters, torch.tensor(float(state.step), device=parameters[0].device)])


def _dropout_seed(seed: int, step: int) -> int:
    """What a step's dropout is seeded with, in each process otherwise."""
    purpose = "dropout" if ranks().leads else f"dropout/{ranks().rank}"
    return rng.generator(seed, purpose, step).initial_seed()


def _backward(network: nn.Module, objective: Objective, batch: Any, config: TrainConfig) -> Tensor:
    """Adds the gradients of the batch's mean loss, part by part, and returns that loss.

    Of several processes each takes `accumulate` parts, and all get the whole batch's gradients.
    """
    here, parts = ranks(), config.accumulate * ranks().size
    if parts == 1:
        loss = objective.loss(network, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    losses = []
    first = here.rank * config.accumulate
    for which in range(first, first + config.accumulate):
        # Each column is split by its own length, which may differ.
        part = tree_map(lambda column, which=which: _part(column, which, parts), batch)
        loss = objective.loss(network, part).mean() / parts
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    total = torch.stack(losses).sum()
    if here.size > 1:
        add_up([total, *(p.grad for p in network.parameters() if p.grad is not None)])
    return total


def _part(column: Tensor | None, which: int, parts: int) -> Tensor | None:
    if column is not None and len(column) < parts:
        raise ValueError(
            f"accumulate: a part of the batch has {len(column)} samples, too few for {parts} parts (accumulate "
            "times processes)"
        )
    return None if column is None else column.tensor_split(parts)[which]


def _check_finite(loss: float, grad_norm: float, step: int, lr: float) -> None:
    if not (isfinite(loss) and isfinite(grad_norm)):
        raise NonFiniteLoss(
            f"loss {loss} and gradient norm {grad_norm} at step {step} with lr {lr:.2e}: "
            "expected finite numbers; lower lr or clip_norm"
        )


@torch.no_grad()
def take_average(state: TrainState, which: int = 0) -> nn.Module:
    """The network in evaluation mode with the EMA weights of one half-life; do not train the state afterwards."""
    for parameter, mean in zip(state.network.parameters(), state.averages[which], strict=True):
        parameter.copy_(mean)
    return state.network.eval()
