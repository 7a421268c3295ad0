"""The shortcut ending: a flow map whose long steps are two of its own short ones."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmcore.endings.maps import MapEnding
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import MapField
from fmcore.flow.paths import expand


@dataclass(frozen=True)
class Shortcut(MapEnding):
    """u(x_t, t, s) learns the mean of the map's own two halves, from t to the middle m and from there to s.

    Frans et al., "One Step Diffusion via Shortcut Models" (arXiv:2410.12557), eq. 4, for steps of any length; the
    semigroup property of flow maps. The target is a constant, of the same weights.
    """

    name: Literal["shortcut"] = "shortcut"
    map_passes: ClassVar[float] = 3.0

    def of_map(self, field: MapField, pairs: Pairs, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """u(x_t, t, s), and what it should be."""
        middle = (t + s) / 2
        with torch.no_grad():
            first = field.mean(x_t, t, middle, pairs.label)
            x_m = x_t + expand(middle - t, x_t) * first
            target = (first + field.mean(x_m, middle, s, pairs.label)) / 2
        return field.mean(x_t, t, s, pairs.label), target
