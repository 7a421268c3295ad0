"""Exponential moving average of weights, with its half-life counted in images.

EDM's rule (Karras et al., arXiv:2206.00364, appendix F.2): the half-life ramps up with the images seen, so
that early averages forget the initialisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def decay(batch_size: int, images_seen: int, halflife_images: float, rampup: float) -> float:
    """The factor the average keeps in one step.

    Main arguments:
        batch_size: images in this step.
        images_seen: images seen before it.
        halflife_images: images after which a weight's share has halved, once ramped up.
        rampup: the half-life is at most this fraction of the images seen.
    """
    halflife = min(halflife_images, rampup * images_seen)
    return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0


@torch.no_grad()
def update(average: Sequence[Tensor], current: Sequence[Tensor], keep: float) -> None:
    """In place: average <- keep * average + (1 - keep) * current, all tensors in one fused call."""
    torch._foreach_lerp_(list(average), list(current), 1 - keep)
