"""Stage `couple@ROUND`: the couplings a round's teacher induces, in shards that a killed run keeps."""

from dataclasses import asdict
from math import prod

import torch

from flows import layout
from flows.events import Events, Metrics, Note, Progress
from flows.params import Params
from flows.setup import classes_of, device_of
from flows.work import need_space, publish, workspace
from fmcore.couplings import Pairs
from fmcore.metrics import mean_estimate, transport_cost
from fmcore.reflow import generate_pairs
from fmcore.solvers import SOLVERS, steps_for
from fmcore.store import finished_shards, load_model, seal_pairs, write_shard
from fmcore.times import uniform_grid

SHARD_BYTES = 16 * 2**20


def couple(params: Params, name: str) -> Events:
    """Integrates fresh noise through the teacher of round `name` and stores noise and samples."""
    teacher_name, section = params.reflow.rounds[name].teacher, params.couple_of(name)
    device = device_of(params)
    teacher = load_model(layout.model(teacher_name), device)
    dtype = getattr(torch, section.dtype)
    pair_bytes = 2 * prod(teacher.shape) * dtype.itemsize
    per_shard = max(1, SHARD_BYTES // pair_bytes // section.batch) * section.batch
    recipe = {
        "couple": asdict(section),
        "data": params.model_dump(mode="json")["data"],
        **params.model_dump(mode="json", include={"seed", "device", "precision", "conditional"}),
        "round": name,
    }
    labels = None
    if teacher.num_classes is not None:
        data = params.data.load()
        classes_of(params, data)
        labels = data.label
    tableau = SOLVERS[section.solver]
    what = f"couple {name}"
    with workspace(f"couple@{name}", recipe, [layout.model(teacher_name)]) as work:
        out = work / "out"
        shards = finished_shards(out)
        done = sum(shard.pairs for shard in shards.values())
        need_space(work, pair_bytes * (section.pairs - done), f"{section.pairs - done} pairs")
        if done:
            yield Note(f"{what}: {done} of {section.pairs} pairs are there already")
        whole = not done
        yield Progress(what, done, section.pairs, "pairs")
        costs: list[torch.Tensor] = []
        for start in range(0, section.pairs, per_shard):
            stop = min(start + per_shard, section.pairs)
            if start in shards and shards[start].pairs == stop - start:
                continue
            batches: list[Pairs] = []
            for pairs in generate_pairs(
                teacher.field(params.precision),
                stop,
                shape=teacher.shape,
                # Rounds draw different noise, or a round would see its teacher's training noise again.
                seed=params.seed,
                purpose=f"pairs/{name}",
                grid=uniform_grid(steps_for(tableau, section.nfe)),
                tableau=tableau,
                batch=section.batch,
                labels=labels,
                start=start,
                dtype=dtype,
                device=device,
            ):
                batches.append(pairs)
                costs.append(transport_cost(pairs.x0.float(), pairs.x1.float()))
                done += len(pairs.x0)
                yield Progress(what, done, section.pairs, "pairs")
            shards[start] = write_shard(out, start, batches)
        if whole:
            yield Metrics(0, {"transport_cost": mean_estimate(torch.cat(costs)).value})
        manifest = {
            "stage": f"couple@{name}",
            "recipe": recipe,
            "teacher": {"model": teacher_name, "sha256": teacher.digest},
            "shape": list(teacher.shape),
            "pairs": section.pairs,
        }
        seal_pairs(out, shards.values(), manifest)
        publish(out, layout.couplings(name))
