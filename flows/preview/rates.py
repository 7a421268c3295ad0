"""How many seconds evaluations take: measured here, or as another device's rate says."""

import time
from collections.abc import Callable
from functools import cache

import torch

from flows.params.schema import Params
from flows.preview.costs import Cost
from flows.workshop.setup import device_of, processes_of
from fmcore.flow.couplings import Independent
from fmcore.flow.fields import network_field
from fmcore.flow.speed import flops
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.networks import Network, initialised

MEASURED = 1.0  # seconds that each rate is measured for
CLASSES = 10  # of a conditional network whose data have not been read
TRAINED = 3  # a training step costs about three evaluations, since it has a backward pass
UNKNOWN = float("nan")  # seconds of a network that params.yaml does not describe


class Rates:
    """Seconds that evaluations take here, each kind of work measured once."""

    def __init__(self, params: Params) -> None:
        self.params, self.device = params, device_of(params)
        # Cores are shared out between processes already, GPUs are not.
        self.devices = processes_of(params) if self.device.type == "cuda" else 1
        self.seconds = cache(self._seconds)

    def of(self, cost: Cost) -> float:
        """Seconds of a stage."""
        if cost.network is None:
            return UNKNOWN
        sampled = cost.sampled and cost.sampled * self.seconds(cost.network, cost.batch, False)
        trained = cost.trained and cost.trained * self.seconds(cost.network, cost.batch, True)
        return (sampled + trained) / self.devices

    def _seconds(self, network: Network, batch: int, training: bool) -> float:
        """Seconds of one evaluation of one sample, in training with its backward pass and update."""
        params, classes = self.params, classes_of(self.params)
        made = initialised(network, params.data.shape, classes, 0).to(self.device)
        x = torch.randn(batch, *params.data.shape, device=self.device)
        label = None if classes is None else torch.zeros(batch, dtype=torch.long, device=self.device)
        if training:
            config = TrainConfig(images=batch * 10**6, batch_size=batch, lr=1e-4)
            objective = flow_objective(Independent(x, label), batch_size=batch, precision=params.precision)
            steps = train(new_state(made, config), objective, config, seed=0, every=1)
            return _per_call(lambda: next(steps)) / batch
        field = network_field(made.eval(), params.precision)
        t = torch.zeros(batch, device=self.device)
        with torch.no_grad():
            return _per_call(lambda: field(x, t, label).sum().item()) / batch


def stated(params: Params, cost: Cost, tflops: float) -> float:
    """Seconds of a stage on a device that sustains so many 10^12 operations a second."""
    if cost.network is None:
        return UNKNOWN
    with torch.device("meta"):
        network = cost.network.build(params.data.shape, classes_of(params))
    one = flops(network, params.data.shape, classes_of(params))
    return one * (cost.sampled + TRAINED * cost.trained) / (tflops * 1e12)


def classes_of(params: Params) -> int | None:
    """The classes that a network is built for."""
    return CLASSES if params.conditional else None


def _per_call(call: Callable[[], object]) -> float:
    for _ in range(2):
        call()
    began, calls = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < MEASURED:
        call()
        calls += 1
    return took / calls
