"""Which samples nothing is trained on: a share of them, or of the groups that they belong to."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from fmcore.disk.dataset import DataError
from fmcore.flow.rng import generator


def held_out(
    share: float, count: int, groups: Sequence[str] | None = None, named: str = ""
) -> tuple[Bool[Tensor, " count"], list[str]]:
    """Which of `count` samples are held out, drawn at random once for all, and a line that says so.

    Main arguments:
        share: in [0, 1), of the samples; of the groups if there are any, at least one of them.
        groups: each sample's; no group lies on both sides.
        named: what names the groups, for the error.

    Raises:
        DataError: if there are too few samples or groups to hold some out and train on others.
    """
    import numpy as np

    g, held = generator(0, "data/held-out"), np.zeros(count, dtype=bool)
    if groups is None:
        wanted = round(share * count)
        if share and not 0 < wanted < count:
            raise DataError(f"data.held_out: {share} of {count} samples leaves too few on one side")
        held[torch.randperm(count, generator=g)[:wanted].numpy()] = True
        return torch.from_numpy(held), [f"{wanted} of {count} are held out"] if wanted else []
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    wanted = max(1, round(share * len(names)))
    if wanted >= len(names):
        raise DataError(f"data.group: {named} names {len(names)} groups, too few to hold some out")
    held = np.isin(of, torch.randperm(len(names), generator=g)[:wanted].numpy())
    told = [f"{int(held.sum())} of {count} are held out, those of {wanted} of {len(names)} groups"]
    return torch.from_numpy(held), told
