"""Randomness as a pure function of (seed, purpose, index).

Nothing here has state, so nothing about randomness needs saving: step k of a training draws from
`generator(seed, "train", k)`, and sample i of a set of pairs starts from `noise(seed, "pairs", i, ...)`,
whatever the batch, worker, shard or resume point. `noise` uses NumPy's counter-based Philox, whose bits do not
depend on the processor's vector instructions (those of `torch.randn` on CPU do).
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor


def _key(seed: int, purpose: str, words: int) -> list[int]:
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8 * words).digest()
    return [int(word) for word in np.frombuffer(digest, dtype="<u8")]


def generator(seed: int, purpose: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for draw number `index` of a purpose.

    Neighbouring indices get neighbouring torch seeds rather than hashed ones: torch's CPU generator keeps
    only the low 32 bits of its seed, where hashes would collide after some 10^4 draws.
    """
    (base,) = _key(seed, purpose, 1)
    return torch.Generator(device).manual_seed((base + index) % 2**63)


def _philox(seed: int, purpose: str, index: int) -> np.random.Generator:
    counter = np.array([0, 0, 0, index], dtype=np.uint64)  # the low words count the draws within one index
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, 2), counter=counter))


def noise(seed: int, purpose: str, start: int, count: int, shape: tuple[int, ...]) -> Float32[Tensor, "count *D"]:
    """Standard normal noise for the samples `start <= i < start + count`, each drawn from its own index.

    Returns float32 of shape `(count, *shape)`; row i is the same in whatever range it is asked for.
    """
    out = np.empty((count, *shape), dtype=np.float32)
    for row in range(count):
        _philox(seed, purpose, start + row).standard_normal(dtype=np.float32, out=out[row])
    return torch.from_numpy(out)


def integers(seed: int, purpose: str, start: int, count: int, high: int) -> Int64[Tensor, " count"]:
    """Uniform integers in [0, high), one for each sample index in `start <= i < start + count`."""
    drawn = [int(_philox(seed, purpose, start + row).integers(high)) for row in range(count)]
    return torch.tensor(drawn, dtype=torch.int64)
