"""What the endings that train a flow map share: times, batches, derivatives.

A flow map's network u(x, t, s) is the mean velocity from t to s. Each of these endings trains it on two parts of
a batch: at s = t on the velocities of pairs, as in reflow, and at s > t on a property that the map of that flow
alone has. They differ in the property. Besides, the map's ends may be matched to data.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmcore.endings.matching import Matching
from fmcore.endings.target import Target
from fmcore.flow.couplings import Coupling, Pairs, joined
from fmcore.flow.fields import OURS, Convention, MapField, network_field
from fmcore.flow.losses import Distance
from fmcore.flow.paths import expand
from fmcore.flow.training import Objective

HALVINGS = 6  # the shortest step that is trained is 2^-6

Arguments = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]]  # x, t, s and label, of what varies


class Spans(NamedTuple):
    """Pairs at the times `at`, where s = t, and others that are carried from t to s > t."""

    diagonal: Pairs
    at: Tensor
    off_diagonal: Pairs
    t: Tensor
    s: Tensor
    middle: Tensor | None  # the one later time of the matching, in each place
    real: tuple[Tensor, Tensor | None] | None  # data to match


def spans(count: int, generator: Generator) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Times t < s: s - t = min(1, 2^(1 - e)) with e uniform in [0, HALVINGS + 1], and t uniform in what is left.

    So one in HALVINGS + 1 goes from 0 to 1 at once, and steps of all sizes have their share.
    """
    e, place = torch.rand(2, count, generator=generator, device=generator.device)
    length = torch.exp2(1 - (HALVINGS + 1) * e).clamp(max=1)
    t = place * (1 - length)
    return t, torch.where(length == 1, 1.0, t + length)


@dataclass(frozen=True)
class MapEnding:
    """What endings of flow maps have in common.

    Main arguments:
        distance: between velocities.
        diagonal: share of each batch that learns the velocities of pairs, at s = t.
        match: how the map's ends are matched to data, too; None for not at all.
    """

    distance: Distance
    diagonal: float
    match: Matching | None = None
    map_passes: ClassVar[float] = 1.0  # evaluations at s > t; a derivative counts as one more

    def __post_init__(self) -> None:
        if not 0 < self.diagonal < 1:
            raise ValueError(f"a flow map needs diagonal in (0, 1), got {self.diagonal}")

    @property
    def passes(self) -> float:
        """Evaluations of a network that training takes for each image, in the mean."""
        return self.diagonal + (1 - self.diagonal) * self.map_passes + (self.match.passes if self.match else 0.0)

    def sizes(self, batch_size: int) -> tuple[int, int]:
        """How many of a batch are at s = t, and how many at s > t."""
        diagonal = min(max(1, round(self.diagonal * batch_size)), batch_size - 1)
        return diagonal, batch_size - diagonal

    def of_map(self, field: MapField, pairs: Pairs, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """What is predicted at s > t, and what it should be; each ending's own."""
        raise NotImplementedError

    def objective(
        self,
        coupling: Coupling,
        target: Target | None = None,
        *,
        batch_size: int,
        precision: str,
        convention: Convention,
    ) -> Objective:
        """The student's objective; without a `target`, on the pairs alone.

        Raises:
            ValueError: for a coupling without pairs, for a network whose output is no velocity on the linear path,
                and for a batch of one.
        """
        if not len(coupling):
            raise ValueError("there is nothing to train on: the coupling holds no pairs")
        if convention != OURS:
            raise ValueError(f"a flow map starts from a velocity on the linear path, got {convention}")
        if batch_size < 2:
            raise ValueError(f"a flow map needs batches of 2 or more, got {batch_size}")
        diagonal, off_diagonal = self.sizes(batch_size)

        def draw(generator: Generator, progress: float) -> Spans:
            pairs = coupling(batch_size, generator, progress)
            at = torch.rand(diagonal, generator=generator, device=generator.device)
            t, s = spans(off_diagonal, generator)
            real = self.match.drawn(target, generator, progress) if self.match else None
            middle = (
                None if real is None else torch.rand(1, generator=generator, device=t.device).expand(batch_size)
            )
            on, off = cut(pairs, slice(diagonal)), cut(pairs, slice(diagonal, None))
            return Spans(on, at, off, t, s, middle, real)

        def loss(network: nn.Module, batch: Spans) -> Tensor:
            field = network_field(network, precision)
            if not isinstance(field, MapField):
                raise TypeError(f"expected a network with a second time, got a {type(network).__name__}")
            x_t, at = points(batch.diagonal, batch.at), batch.at
            v, u_t = field(x_t, at, batch.diagonal.label), batch.diagonal.x1 - batch.diagonal.x0
            on_diagonal = self.distance(v, u_t, x_t, at)
            x_t = points(batch.off_diagonal, batch.t)
            predicted, wanted = self.of_map(field, batch.off_diagonal, x_t, batch.t, batch.s)
            found = torch.cat([on_diagonal, self.distance(predicted, wanted, x_t, batch.t)])
            if self.match is None or target is None or batch.middle is None or batch.real is None:
                return found
            pairs = joined([batch.diagonal, batch.off_diagonal], x_t.device)
            middle = batch.middle[:1].expand(len(pairs.x0))  # a part of a batch has parts that differ in length
            return found.mean() + self.match.of_map(field, pairs, middle, target, batch.real)

        slow = coupling.slow or (target is not None and target.data.slow)
        return Objective(draw, loss, slow, batch_size)


def cut(pairs: Pairs, part: slice) -> Pairs:
    """A part of the pairs."""
    label = None if pairs.label is None else pairs.label[part]
    return Pairs(pairs.x0[part], pairs.x1[part], label)


def points(pairs: Pairs, t: Float[Tensor, " B"]) -> Float[Tensor, "B *D"]:
    """The points x_t on the lines between the pairs."""
    return pairs.x0 + expand(t, pairs.x0) * (pairs.x1 - pairs.x0)


def derivative(
    field: MapField, arguments: Arguments, at: tuple[Tensor, ...], towards: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """u where `arguments` puts `at`, and its derivative towards a direction; gradients flow through both.

    By forward mode, in float32 and with attention in its plain form: other kernels have no forward mode.
    """
    _load_forward_mode()
    with sdpa_kernel(SDPBackend.MATH):
        u, slope = torch.func.jvp(lambda *given: field.exact(*arguments(*given)), at, towards)[:2]
    return u, slope


@cache
def _load_forward_mode() -> None:
    """Has torch load its forward mode, which warns of torch's own use of TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
