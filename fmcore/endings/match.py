"""Drawing a one-step student's samples to the distribution of the data, beside its pairs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from fmcore.flow.couplings import Coupling, Pairs
from fmcore.flow.fields import Convention, network_field
from fmcore.flow.losses import Distance, compared
from fmcore.flow.paths import LINEAR, expand
from fmcore.flow.times import TimeSampler
from fmcore.flow.training import Objective


@dataclass(frozen=True)
class Matching:
    """How strongly, and from which share of the training on, a student's samples are drawn to the data's.

    `weight` multiplies their energy distance per dimension, which is added to the loss on pairs.
    """

    weight: float
    start: float

    def __post_init__(self) -> None:
        if self.weight <= 0 or not 0 <= self.start < 1:
            raise ValueError(f"matching needs weight > 0 and start in [0, 1), got {self.weight} and {self.start}")


def energy(
    x: Float[Tensor, "B *D"],
    y: Float[Tensor, "N *D"],
    x_label: Int64[Tensor, " B"] | None = None,
    y_label: Int64[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """The energy distance over D, (2 E|x - y| - E|x - x'| - E|y - y'|) / D, unbiased, of two samples or more.

    It is 0 only where x is distributed as y (Szekely and Rizzo, "Energy statistics", 2013; as the loss of a
    generator: Bellemare et al., arXiv:1705.10743). With labels it is that of samples and labels together: for two
    of different classes |x - y|^2 is larger by D.
    """
    a, b = x.flatten(1), y.flatten(1)

    def apart(u: Tensor, v: Tensor, u_label: Tensor | None, v_label: Tensor | None) -> Tensor:
        squares = (
            torch.cdist(u, v).square() + 1e-8
        )  # the root's slope is infinite at 0, where a sample meets itself
        if u_label is not None and v_label is not None:
            squares = squares + u.shape[1] * (u_label[:, None] != v_label)
        return squares.sqrt()

    def spread(u: Tensor, label: Tensor | None) -> Tensor:
        lengths = apart(u, u, label, label)
        return (lengths.sum() - lengths.diagonal().sum()) / (len(u) * (len(u) - 1))

    to_data = apart(a, b, x_label, y_label).mean()
    labels = (x_label, y_label) if x_label is not None and y_label is not None else (None, None)
    return (2 * to_data - spread(a, labels[0]) - spread(b, labels[1])) / a.shape[1]


def matching_objective(
    coupling: Coupling,
    real: Coupling,
    times: TimeSampler,
    distance: Distance,
    matching: Matching,
    *,
    batch_size: int,
    precision: str,
    convention: Convention,
) -> Objective:
    """The flow-matching loss on a coupling's pairs, and from `matching.start` on the energy distance to data.

    Added is `matching.weight` times the distance of the ends x_t + (1 - t) v, which on the linear path are what
    one step to the end makes, to samples of `real`. Other arguments are those of `flow_objective`.
    """

    if not len(coupling):
        raise ValueError("there is nothing to train on: the coupling holds no pairs")

    def draw(generator: Generator, progress: float) -> tuple[Pairs, Tensor, Pairs | None]:
        pairs, t = coupling(batch_size, generator, progress), times(batch_size, generator)
        return pairs, t, None if progress < matching.start else real(batch_size, generator, progress)

    def loss(network: nn.Module, batch: tuple[Pairs, Tensor, Pairs | None]) -> Tensor:
        pairs, t, data = batch
        found = compared(network_field(network, precision, convention, LINEAR), LINEAR, pairs, t)
        on_pairs: Tensor = distance(*found)
        if data is None:
            return on_pairs
        ends = found.x_t + expand(1 - found.t, found.x_t) * found.v
        return on_pairs + matching.weight * energy(ends, data.x1, pairs.label, data.label)

    return Objective(draw, loss, coupling.slow or real.slow)
