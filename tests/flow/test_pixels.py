"""Pixels of 8 bits and the numbers that networks see instead."""

import torch

from fmcore.flow.pixels import dequantise, quantise


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = dequantise(levels)
    assert (float(x[0]), float(x[-1])) == (-1, 1)
    assert torch.equal(quantise(x), levels)
    nearly_half = 0.49 / 127.5
    assert torch.equal(quantise((x + nearly_half).clamp(max=1)), levels)
    assert torch.equal(quantise((x - nearly_half).clamp(min=-1)), levels)


def test_halves_round_up_and_the_rest_is_clamped():
    assert quantise(torch.tensor([0.0])).item() == 128  # 127.5
    assert quantise(torch.tensor([-1 + 1 / 255 + 1e-6, -1 + 1 / 255 - 1e-6])).tolist() == [1, 0]
    assert quantise(torch.tensor([-1.5, -100.0, 1.001, 100.0])).tolist() == [0, 0, 255, 255]


def test_quantising_does_not_darken():
    x = torch.linspace(-1, 1, 100_001)
    assert abs(float((dequantise(quantise(x)) - x).mean())) < 1e-4
