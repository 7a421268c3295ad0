"""The consistency ending: a flow's predicted end stays the same along a pair's line."""

from dataclasses import dataclass
from math import floor
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from fmcore.flow.couplings import Coupling, Pairs
from fmcore.flow.fields import Convention, network_field
from fmcore.flow.losses import Distance
from fmcore.flow.paths import LINEAR, expand
from fmcore.flow.training import Objective


class Gaps(NamedTuple):
    """Pairs, and the times t < s between which their predicted ends are compared."""

    pairs: Pairs
    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class Consistency:
    """f(x_t, t) = x_t + (1 - t) v learns f(x_s, s), a constant, where s lies between t and the data.

    Song et al. (arXiv:2303.01469, definition 1), tuned as Geng et al., "Consistency Models Made Easy"
    (arXiv:2406.14548, section 3): s is the data at first, so that the flow it starts from is trained on, and the
    gap (s - t) / (1 - t) is halved `halvings` times in the course of the training. Ends are compared as
    the velocities that lead to them, (f - x_t) / (1 - t).

    Main arguments:
        distance: between velocities.
        at_noise: share of each batch at t = 0.
        halvings: how often the gap is halved.
    """

    distance: Distance
    at_noise: float
    halvings: int
    name: Literal["consistency"] = "consistency"

    def __post_init__(self) -> None:
        if not 0 <= self.at_noise <= 1 or self.halvings < 1:
            raise ValueError(f"consistency needs at_noise in [0, 1] and halvings >= 1, got {self}")

    @property
    def passes(self) -> float:
        """Evaluations of a network that training takes for each image, in the mean."""
        return 2.0  # at t and at s

    def gap(self, progress: float) -> float:
        """(s - t) / (1 - t) at a share of the training."""
        return 2.0 ** -min(self.halvings, floor(progress * (self.halvings + 1)))

    def objective(
        self, coupling: Coupling, *, batch_size: int, precision: str, convention: Convention
    ) -> Objective:
        """The student's objective; a ValueError for a coupling without pairs."""
        if not len(coupling):
            raise ValueError("there is nothing to train on: the coupling holds no pairs")
        first = round(self.at_noise * batch_size)

        def draw(generator: Generator, progress: float) -> Gaps:
            pairs = coupling(batch_size, generator, progress)
            t = torch.rand(batch_size, generator=generator, device=generator.device)
            t[:first] = 0
            gap = self.gap(progress)
            return Gaps(pairs, t, torch.ones_like(t) if gap == 1 else t + gap * (1 - t))

        def loss(network: nn.Module, batch: Gaps) -> Tensor:
            field = network_field(network, precision, convention, LINEAR)
            (x0, x1, label), t, s = batch
            x_t, x_s = (x0 + expand(time, x0) * (x1 - x0) for time in (t, s))
            with torch.no_grad():
                end = x_s + expand(1 - s, x_s) * field(x_s, s, label)
            left = expand((1 - t).clamp(min=1e-6), x_t)
            return self.distance(field(x_t, t, label), (end - x_t) / left, x_t, t)

        return Objective(draw, loss, coupling.slow, batch_size)
