"""The one way between image tensors in [-1, 1] and 8-bit pixels, for training data, references and scores.

Other quantisers (truncation, `floor(255 x)`) darken by half a grey level, which shows in Frechet distances.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def quantise(x: Float[Tensor, "*D"]) -> UInt8[Tensor, "*D"]:
    """[-1, 1] -> 0..255, rounding half up; values outside are clamped."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def dequantise(pixels: UInt8[Tensor, "*D"]) -> Float[Tensor, "*D"]:
    """0..255 -> [-1, 1]; `quantise` undoes it exactly."""
    return pixels.float() / 127.5 - 1


def floats(x: Tensor) -> Tensor:
    """x in float32, as networks take it: 8-bit pixels are mapped to [-1, 1], other values kept."""
    return dequantise(x) if x.dtype == torch.uint8 else x.float()
