"""The Lagrangian ending: a flow map whose end moves, as s grows, with the flow's own velocity there."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmcore.endings.maps import MapEnding, derivative
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import MapField
from fmcore.flow.paths import expand


@dataclass(frozen=True)
class Lagrangian(MapEnding):
    """d/ds X(x_t; t, s) = u + (s - t) du/ds learns v(X, s), the map's own velocity at its end.

    Boffi et al., "How to build a consistency model: learning flow maps via self-distillation" (arXiv:2505.18825),
    Lagrangian self-distillation. The end and the velocity there are constants.
    """

    name: Literal["lagrangian"] = "lagrangian"
    map_passes: ClassVar[float] = 3.0

    def of_map(self, field: MapField, pairs: Pairs, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity of the map's end, and what it should be."""
        u, slope = derivative(field, lambda s: (x_t, t, s, pairs.label), (s,), (torch.ones_like(s),))
        with torch.no_grad():
            target = field(x_t + expand(s - t, x_t) * u, s, pairs.label)
        return u + expand(s - t, x_t) * slope, target
