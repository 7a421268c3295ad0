"""Randomness as a pure function of (seed, purpose, index).

Nothing here has state, so nothing about randomness needs saving: step k of a training draws from
`generator(seed, "train", k)`, and sample i of a set of pairs starts from `noise(seed, "pairs", i, ...)`,
whatever the batch, worker, shard or resume point. `noise` uses NumPy's counter-based Philox, whose bits do not
depend on the processor's vector instructions (those of `torch.randn` on CPU do).
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

LONG = 512  # numbers in a row from which on drawing them takes longer than Python's overhead


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


def _philox(seed: int, purpose: str, indices: range) -> Iterator[np.random.Generator]:
    """A generator for each index in turn: one object that is reset, since making a new one takes far longer."""
    bits = np.random.Philox(key=_key(seed, purpose, 2))
    drawn, state = np.random.Generator(bits), bits.state
    for index in indices:
        state["state"]["counter"][3] = index  # the low words count the draws within one index
        bits.state = state
        yield drawn


def noise(seed: int, purpose: str, start: int, count: int, shape: tuple[int, ...]) -> Float32[Tensor, "count *D"]:
    """Standard normal noise for the samples `start <= i < start + count`, each drawn from its own index.

    Returns float32 of shape `(count, *shape)`; row i is the same in whatever range it is asked for.
    """
    out = np.empty((count, *shape), dtype=np.float32)

    def fill(first: int) -> None:
        rows = out[first : first + size]
        indices = range(start + first, start + first + len(rows))
        for row, drawn in zip(rows, _philox(seed, purpose, indices), strict=True):
            drawn.standard_normal(dtype=np.float32, out=row)

    # NumPy draws without holding Python's lock, so long rows are drawn on all cores.
    threads = torch.get_num_threads() if prod(shape) >= LONG else 1
    size = max(1, -(-count // threads))
    if size == count:
        fill(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, count, size)))
    return torch.from_numpy(out)


def integers(seed: int, purpose: str, start: int, count: int, high: int) -> Int64[Tensor, " count"]:
    """Uniform integers in [0, high), one for each sample index in `start <= i < start + count`."""
    drawn = [int(one.integers(high)) for one in _philox(seed, purpose, range(start, start + count))]
    return torch.tensor(drawn, dtype=torch.int64)
