"""How much the GPU benchmark does, and what its parts are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fmcore.models.networks import MLP, UNet
from fmcore.ode.solvers import SOLVERS

Row = dict[str, Any]
Step = Callable[[], object]
EULER, HEUN = SOLVERS["euler"], SOLVERS["heun"]
# Largest difference from the CPU in fp32, over the largest value there. Sums in another order make 1e-6 of it;
# TensorFloat32, which torch allows in convolutions, keeps 10 bits of a number and bfloat16 7. Losses drift apart.
EXACT, TF32, BF16, DRIFT = 1e-4, 1e-2, 5e-2, 1e-3
OK = "as it should be"  # the column of rows that may be wrong


@dataclass(frozen=True)
class Size:
    """How much to do: the networks, the batches each is measured in, and how long to look."""

    mlp: MLP
    small: UNet
    large: UNet
    shape: tuple[int, ...]
    images: int
    checked: int
    matrix: int
    train_small: int
    train_large: tuple[int, ...]
    every: int
    pairs: tuple[int, ...]
    steps: int
    samples: tuple[int, ...]
    rounds: int
    turn_seconds: float
    limit_seconds: float = 40.0


FULL = Size(
    mlp=MLP(width=512, depth=3),
    small=UNet(channels=(32, 64, 128), layers=1),
    large=UNet(channels=(128, 256, 256, 256), layers=4),  # 56.1M parameters; EDM's for CIFAR-10 has 55.7M
    shape=(3, 32, 32),
    images=50_000,
    checked=16,
    matrix=8192,
    train_small=256,
    train_large=(256, 128, 512),
    every=10,  # the stages take one record in 50 steps: less waiting than is measured here
    pairs=(256, 1024, 2048),
    steps=18,
    samples=(1, 64, 1024),
    rounds=5,
    turn_seconds=0.3,
)
QUICK = Size(
    mlp=MLP(width=16, depth=1),
    small=UNet(channels=(8,), layers=1),
    large=UNet(channels=(8, 16), layers=1),
    shape=(3, 8, 8),
    images=64,
    checked=4,
    matrix=128,
    train_small=8,
    train_large=(8, 4),
    every=1,
    pairs=(4, 8),
    steps=2,
    samples=(1, 4),
    rounds=1,
    turn_seconds=0.0,
)


class Bench(NamedTuple):
    """What every part is given: how much to do, where, and what the parts before it found."""

    size: Size
    device: torch.device
    parts: dict[str, Any]


class Part(NamedTuple):
    """What is recorded at once; `seconds` is what it takes on a large GPU, compilation included."""

    name: str
    seconds: float
    measure: Callable[[Bench], list[Row]]
