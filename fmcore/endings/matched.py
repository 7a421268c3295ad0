"""The matched flow: a rectified flow whose predicted ends are trained to have the distribution of the data."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from fmcore.endings.maps import cut
from fmcore.endings.matching import Matching
from fmcore.endings.spaces import Space
from fmcore.endings.target import Target
from fmcore.flow.couplings import Coupling, Pairs
from fmcore.flow.fields import Convention, VelocityField, network_field
from fmcore.flow.losses import Distance
from fmcore.flow.paths import LINEAR, expand
from fmcore.flow.training import Objective


@dataclass(frozen=True)
class Matched:
    """A flow trained on pairs, whose predicted ends x_t + (1 - t) v are matched to data by an energy distance.

    A share `at_noise` of each batch is at t = 0. The rest is at one t, drawn from [0, 1) anew in each step: ends
    of several times could have the right distribution together and a wrong one at each time. Until `start` this is
    reflow. From then on, the rest lies on the flow's own trajectories: two Euler steps lead from a pair's noise to
    x_t, and the target velocity is the mean velocity of these steps. Otherwise the flow would be right on the
    lines between pairs, which none of its samplers visits.

    Main arguments:
        distance: between velocities.
        at_noise, start, weight, real, spaces: those of `Matching`.
    """

    distance: Distance
    at_noise: float
    start: float
    weight: float
    real: int
    spaces: Literal["auto"] | tuple[Space, ...]
    name: Literal["matched"] = "matched"

    def __post_init__(self) -> None:
        _ = self.match

    @property
    def match(self) -> Matching:
        """How its ends are matched; a ValueError for numbers out of range."""
        return Matching(self.at_noise, self.start, self.weight, self.real, self.spaces)

    @property
    def passes(self) -> float:
        """Evaluations of a network that training takes for each image, in the mean."""
        return 1 + (1 - self.start) * (1 + 2 * (1 - self.at_noise))  # the base sees all ends, two steps lead to t

    def objective(
        self,
        coupling: Coupling,
        target: Target | None,
        *,
        batch_size: int,
        precision: str,
        convention: Convention,
    ) -> Objective:
        """The student's objective; without a `target`, on the pairs alone."""
        if not len(coupling):
            raise ValueError("there is nothing to train on: the coupling holds no pairs")
        first, later = self.match.sizes(batch_size)

        def draw(generator: Generator, progress: float) -> Batch:
            pairs = coupling(batch_size, generator, progress)
            t = torch.rand(1, generator=generator, device=generator.device).expand(later)
            real = self.match.drawn(target, generator, progress)
            return Batch(cut(pairs, slice(first)), cut(pairs, slice(first, None)), t, real)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            field = network_field(network, precision, convention, LINEAR)
            at_noise, later, t, real = batch
            on_its_way = later.x1 - later.x0 if real is None else mean_of_two_steps(field, later, t)
            x_t = torch.cat([at_noise.x0, later.x0 + expand(t, later.x0) * on_its_way])
            u_t = torch.cat([at_noise.x1 - at_noise.x0, on_its_way])
            t = torch.cat([t.new_zeros(len(at_noise.x0)), t])
            label = (
                None if later.label is None or at_noise.label is None else torch.cat([at_noise.label, later.label])
            )
            v = field(x_t, t, label)
            total: Tensor = self.distance(v, u_t, x_t, t).mean()
            if real is None or target is None:
                return total
            ends = x_t + expand(1 - t, x_t) * v
            groups = (slice(len(at_noise.x0)), slice(len(at_noise.x0), None))
            return total + self.weight * target.distances(ends, label, [g for g in groups if len(ends[g])], real)

        slow = coupling.slow or (target is not None and target.data.slow)
        return Objective(draw, loss, slow, batch_size)


class Batch(NamedTuple):
    """Pairs at t = 0, pairs at the later times t, and the data that their ends are compared with."""

    at_noise: Pairs
    later: Pairs
    t: Tensor
    real: tuple[Tensor, Tensor | None] | None


@torch.no_grad()
def mean_of_two_steps(field: VelocityField, pairs: Pairs, t: Float[Tensor, " B"]) -> Float[Tensor, "B *D"]:
    """The mean velocity of two Euler steps from the pairs' noise at 0 to time t."""
    x0, label = pairs.x0, pairs.label
    v = field(x0, torch.zeros_like(t), label)
    return (v + field(x0 + expand(t / 2, x0) * v, t / 2, label)) / 2
