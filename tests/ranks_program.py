"""Trains with N processes: `python -m ranks_program N ENDING ACCUMULATE FILE` leaves weights and losses in FILE.

The processes are forked before torch has started a thread.
"""

import os
import sys

import torch
from safetensors.torch import save_file
from torch import distributed

from fmcore.endings import ENDINGS
from fmcore.flow.couplings import Independent, Pairs, Stored
from fmcore.flow.fields import OURS
from fmcore.flow.losses import Squared
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.models.flow_maps import with_second_time
from fmcore.models.networks import MLP, initialised


def trained(ending, accumulate, seed=0):
    network = initialised(MLP(16, 2), (2,), None, seed)
    x0, x1 = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(1))
    if ending == "none":
        objective = flow_objective(Independent(x1), batch_size=32)
    else:
        torch.manual_seed(seed)
        with_second_time(network)
        kind = ENDINGS[ending](distance=Squared(), diagonal=0.5)
        pairs = Stored(Pairs(x0, x1, None))
        objective = kind.objective(pairs, batch_size=32, precision="fp32", convention=OURS)
    config = TrainConfig(images=640, batch_size=32, lr=2e-3, accumulate=accumulate, ema_halflife_images=(100,))
    state = new_state(network, config)
    losses = [record.loss for record in train(state, objective, config, seed=3, every=5)]
    weights = {f"weight{i}": p.detach() for i, p in enumerate(network.parameters())}
    averages = {f"average{i}": p for i, p in enumerate(state.averages[0])}
    return {"losses": torch.tensor(losses), **weights, **averages}


def main():
    count, ending, accumulate, path = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    if count == 1:
        save_file(trained(ending, accumulate), path)
        return
    children = []
    while len(children) < count and (child := os.fork()):
        children.append(child)
    if len(children) == count:
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    rank = len(children)
    distributed.init_process_group("gloo", init_method=f"file://{path}.meet", rank=rank, world_size=count)
    found = trained("none" if ending == "different" else ending, accumulate, rank if ending == "different" else 0)
    save_file(found, path if rank == 0 else f"{path}.{rank}")


if __name__ == "__main__":
    main()
