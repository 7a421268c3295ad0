"""Several processes that share work: which of them this is, who takes what, and how their gradients meet.

Someone else starts them, e.g. torchrun, and calls `torch.distributed.init_process_group`. Without it there is one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed


class Ranks(NamedTuple):
    """The number of this process, from 0, and how many there are."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what all of them made."""
        return self.rank == 0


def ranks() -> Ranks:
    """Which process this is: 0 of 1, unless torch.distributed was started."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks(0, 1)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def barrier() -> None:
    """Waits until all processes are here."""
    if ranks().size > 1:
        distributed.all_reduce(torch.zeros(1))


def shared_out(costs: Sequence[float]) -> list[int]:
    """The process that takes each of several pieces of work: the dearest first, each to who has least so far.

    >>> shared_out([1, 2, 4])
    [0, 0, 0]
    """
    size = ranks().size
    taken, who = [0.0] * size, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        who[i] = min(range(size), key=lambda rank: taken[rank])
        taken[who[i]] += costs[i]
    return who


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes, which hold tensors of the same shapes; in one go."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(like) for part, like in zip(parts, tensors, strict=True)])


@torch.no_grad()
def check_same(what: str, tensors: Sequence[Tensor]) -> None:
    """A ValueError in every process if the tensors are not the same in all."""
    total = torch.stack([tensor.double().sum() for tensor in tensors]).sum()
    ends = torch.stack([total, -total])
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise ValueError(f"{what}: expected the same in all {ranks().size} processes, got different ones")
