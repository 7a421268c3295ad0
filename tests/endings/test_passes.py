"""What an ending says a training takes, against evaluations that are counted."""

import pytest
import torch

from fmcore.endings import ENDINGS
from fmcore.endings.maps import MapEnding
from fmcore.endings.matching import Matching
from fmcore.endings.spaces import Pixels
from fmcore.endings.target import target_of
from fmcore.flow.couplings import Independent, Pairs, Stored
from fmcore.flow.fields import OURS
from fmcore.flow.losses import Squared
from fmcore.models.flow_maps import with_second_time
from fmcore.models.networks import MLP, initialised

OWN = {"consistency": {"at_noise": 0.5, "halvings": 3}, "regression": {"k": 1}}
MATCH = {"at_noise": 0.75, "start": 0.25, "weight": 1.0, "real": 16, "spaces": (Pixels(),)}


@pytest.mark.parametrize("name", ENDINGS)
def test_passes_are_those_that_training_takes(name):
    kind, seen = ENDINGS[name], 0
    is_map = issubclass(kind, MapEnding)
    own = MATCH if name == "matched" else {"diagonal": 0.75, "match": Matching(**MATCH)} if is_map else OWN[name]
    ending = kind(distance=Squared(), **own)
    network = initialised(MLP(8, 1), (2,), None, 0)
    if is_map:
        with_second_time(network)

    def count(module, given, kwargs=None):
        nonlocal seen
        seen += len(given[0])

    network.register_forward_pre_hook(count)
    pairs, data = Stored(Pairs(*torch.randn(2, 64, 2), None)), Independent(torch.randn(64, 2))

    def embed(x, label):
        nonlocal seen
        seen += len(x)  # of the base
        return [x]

    target = target_of(lambda x, _: [x], data, flip=False, clip=False, device=torch.device("cpu"))
    target = target.__class__(**{**vars(target), "embed": embed})
    given = (pairs, target) if name == "matched" or is_map else (pairs,)
    of = ending.objective(*given, batch_size=64, precision="fp32", convention=OURS)
    steps = 8
    for step in range(steps):
        of.loss(network, of.draw(torch.Generator().manual_seed(step), step / steps))
    counted = seen / (64 * steps)
    if name in ("lagrangian", "meanflow"):
        counted += 1 - ending.diagonal  # a derivative, which the network does not see as another evaluation
    assert counted == pytest.approx(ending.passes)
