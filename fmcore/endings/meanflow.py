"""The MeanFlow ending: a flow map that obeys the identity between mean and present velocity."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmcore.endings.maps import MapEnding, derivative
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import MapField
from fmcore.flow.paths import expand


@dataclass(frozen=True)
class MeanFlow(MapEnding):
    """u(x_t, t, s) learns v + (s - t) du/dt, the derivative taken along the pair's own velocity v = x_1 - x_0.

    (s - t) u is the integral of the velocity from t to s, whose derivative by t is -v. Geng et al., "Mean Flows
    for One-step Generative Modeling" (arXiv:2505.13447), eq. 6, where time runs the other way; on stored pairs
    arXiv:2511.23342. The derivative is a constant.
    """

    name: Literal["meanflow"] = "meanflow"
    map_passes: ClassVar[float] = 2.0

    def of_map(self, field: MapField, pairs: Pairs, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """u(x_t, t, s), and what it should be."""
        v = pairs.x1 - pairs.x0
        u, slope = derivative(field, lambda x, t: (x, t, s, pairs.label), (x_t, t), (v, torch.ones_like(t)))
        return u, v + expand(s - t, x_t) * slope.detach()
