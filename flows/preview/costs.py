"""What each stage evaluates and stores, as it follows from params.yaml."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from flows.params.schema import Params
from flows.scores.sweep import ADAPTIVE_NFE, samplings_of
from flows.workshop.entry import addresses
from fmcore.disk.pairs import pair_bytes
from fmcore.endings.regression import Regression
from fmcore.flow.training import TrainConfig
from fmcore.models.networks import Network

BATCH = 1000  # where the pairs' batch is auto


class Cost(NamedTuple):
    """What a stage takes: evaluations without and with a backward pass, in batches, and the bytes of its pairs.

    `network` is None for a diffusion model that stands for the base.
    """

    address: str
    network: Network | None
    sampled: int
    trained: int
    batch: int
    disk: int


def costs(params: Params) -> Iterator[Cost]:
    """The stages that evaluate networks, in the order in which they run."""
    for address in addresses(params.model_dump(mode="json")):
        kind, _, name = address.partition("@")
        if kind == "base" and params.base.teacher is None:
            yield _trained(address, params.network, params.base.train, 1.0)
        elif kind == "reflow":
            yield _trained(address, network_of(params, name), params.train_of(name), 1.0)
        elif kind == "distill":
            distill = params.distill_of(name)
            yield _trained(address, network_of(params, name), distill.train, distill.ending.passes)
        elif kind == "couple":
            yield _coupled(address, name, params)
        elif kind in ("evaluate_base", "evaluate", "evaluate_student"):
            yield _scored(address, name or "base", params)


def network_of(params: Params, model: str) -> Network | None:
    """The network of a model; None if it is that of a diffusion model that stands for the base."""
    own = None
    if model in params.reflow.rounds:
        own = params.reflow.network
    elif model in params.distill.students:
        own = params.distill_of(model).network
        init = params.distill.students[model].init
        own = own or (None if init == "base" else params.reflow.network)
    return own or (params.network if params.base.teacher is None else None)


def _trained(address: str, network: Network | None, train: TrainConfig, passes: float) -> Cost:
    return Cost(address, network, 0, round(train.images * passes), train.batch_size // train.accumulate, 0)


def _coupled(address: str, name: str, params: Params) -> Cost:
    section = params.couple_of(name)
    pairs = section.pairs + section.inverted
    batch = BATCH if section.batch == "auto" else section.batch
    disk = pairs * pair_bytes(params.data.shape, getattr(torch, section.dtype))
    return Cost(
        address, network_of(params, params.reflow.rounds[name].teacher), pairs * section.nfe, 0, batch, disk
    )


def _scored(address: str, model: str, params: Params) -> Cost:
    section, k = params.evaluate, None
    if model in params.distill.students and isinstance(ending := params.distill_of(model).ending, Regression):
        k = ending.k
    paired = model != "base" or params.base.coupling != "independent"
    nfe = sum(how.nfe or ADAPTIVE_NFE for how in samplings_of(section, k=k, paired=paired))
    return Cost(address, network_of(params, model), section.samples * section.repeats * nfe, 0, section.batch, 0)
