"""Where the time of a training goes: the parts of a step, and what watches the training."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch import Tensor, nn

import flows.stages.training
from benchmarks.curves.steps import config_of, objective_of, trained
from benchmarks.curves.timing import of_whole, timed
from flows.launch.runner import Bars
from flows.watch import journal
from fmcore.disk import checkpoint
from fmcore.disk.files import write_file
from fmcore.flow import ema, rng
from fmcore.flow.fields import network_field
from fmcore.flow.paths import LINEAR, interpolate
from fmcore.flow.training import Objective, new_state, train
from fmcore.models.networks import Network


class Clock:
    """Seconds by part; time in a part that another calls is the inner part's alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]

    def around(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, clocked."""

        def clocked(*args: object, **options: object) -> Any:
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                seconds = time.perf_counter() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + seconds - self.inner.pop()
                self.inner[-1] += seconds

        return clocked


@contextmanager
def clocks(clock: Clock, network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Clocks inside the library's own training step, so that what is measured is that step and no copy of it."""
    places = [
        ("network", network, "forward"),
        ("network", Tensor, "backward"),  # the loss's own part of it is a few passes over the batch
        ("optimizer", optimizer, "step"),
        ("optimizer", optimizer, "zero_grad"),
        ("clipping", nn.utils, "get_total_norm"),
        ("clipping", nn.utils, "clip_grads_with_norm_"),
        ("EMA", ema, "update"),
    ]
    with ExitStack() as stack:
        for part, owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, clock.around(part, getattr(owner, name))))
        yield


PARTS = ("network", "draw", "path and loss", "clipping", "optimizer", "EMA", "checks and records")


def step_shares(name: str, config: Network, shape: tuple[int, ...], batch: int, repeats: int) -> list[str]:
    """A line of the table: the share of each part of a training step, and the network alone on the same batch."""
    network, settings = trained(config, shape), config_of(batch)
    plain = objective_of(shape, batch)
    state = new_state(network, settings)
    (x0, x1, _), t = plain.draw(rng.generator(0, "train"), 0.0)
    x_t, u_t = interpolate(LINEAR, x0, x1, t)
    field = network_field(network, "auto")

    def bare() -> None:
        network.zero_grad(set_to_none=True)
        field(x_t, t, None).backward(u_t)

    clock = Clock()
    objective = Objective(clock.around("draw", plain.draw), clock.around("path and loss", plain.loss))
    whole: list[float] = []
    alone: list[float] = []
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    # A record every step, where the stages take one in fifty: records cost more here than there.
    records = train(state, objective, settings, seed=0, every=1)
    for k in range(repeats + 1):
        with clocks(clock, network, state.optimizer):
            seconds = timed(lambda: next(records))
        parts, clock.seconds = clock.seconds, {}
        without = timed(bare)
        if not k:
            continue  # warm
        whole.append(seconds)
        alone.append(without)
        parts["checks and records"] = seconds - sum(parts.values())
        for part in PARTS:
            found[part].append(parts.get(part, 0.0))
    step = statistics.median(whole)
    shares = [of_whole(statistics.median(found[part]), step) for part in PARTS]
    outside = step - statistics.median(found["network"])
    difference = min(whole) - min(alone)  # the fastest: a small difference of large times
    return [name, str(batch), f"{1e3 * step:,.1f}", *shares, f"{1e3 * outside:.2f}", f"{1e3 * difference:+.2f}"]


# --- what is kept of a training -------------------------------------------------------------------------------


def watching_shares(name: str, config: Network, shape: tuple[int, ...], batch: int, seconds: float) -> list[str]:
    """A line of the table: shares of a training's bar, journal and checkpoints, and the sending of the journal.

    It runs the stages' own `run_training`, with all that watches a stage; MLflow is a database in the same folder.
    """
    network = trained(config, shape)
    objective = objective_of(shape, batch)
    warm = replace(config_of(batch), images=10 * batch)
    for _ in train(new_state(network, warm), objective, warm, seed=0):
        pass
    a_step = timed(lambda: list(train(new_state(network, warm), objective, warm, seed=0))) / 10
    settings = replace(config_of(batch), images=batch * max(100, round(seconds / a_step)))
    clock = Clock()
    with tempfile.TemporaryDirectory() as place, mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": ""}):
        root, work = Path(place), Path(place) / "work"
        with (
            mock.patch.object(checkpoint, "save", clock.around("checkpoints", checkpoint.save)),
            mock.patch.object(flows.stages.training, "write_file", clock.around("checkpoints", write_file)),
            journal.open_journal(root, stage="base", params={}, tags={}) as mlflow,
            Bars() as bars,
        ):
            shown, kept = clock.around("bar", bars), clock.around("journal", mlflow)
            start = time.perf_counter()
            for event in flows.stages.training.run_training(
                "base", work, new_state(network, settings), objective, settings, 0
            ):
                for said in (event, *shown(event)):
                    kept(said)
            whole = time.perf_counter() - start
        shipping = seconds_of_postman(root)
    shares = [of_whole(clock.seconds.get(part, 0.0), whole) for part in ("bar", "journal", "checkpoints")]
    return [name, str(batch), f"{whole:.1f}", *shares, f"{shipping:.1f}"]


def seconds_of_postman(root: Path) -> float:
    """CPU-seconds of the process that sends the journals of this folder, seen until it leaves."""
    mine = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == str(root)]
    spent = 0.0
    with suppress(psutil.Error):
        while mine and mine[0].is_running():
            times = mine[0].cpu_times()
            spent = times.user + times.system
            time.sleep(0.1)
    return spent
