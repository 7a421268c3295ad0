"""Stage `evaluate_pairs@ROUND`: scores of the samples in stored couplings.

Their distance to the data is the best that a student trained on these pairs alone can reach.
"""

from functools import partial

import torch

from flows import layout
from flows.events import Events, Metrics, Progress, Table
from flows.params.schema import Params
from flows.scores.judging import decoding_of, judge_of, scorer_of
from flows.scores.table import rows_of, write_scores
from flows.workshop.entry import Stage
from flows.workshop.setup import device_of
from flows.workshop.workspace import publish, workspace
from fmcore.disk.files import read_json, write_file
from fmcore.disk.pairs import map_pairs
from fmcore.disk.sums import check
from fmcore.flow.couplings import Sharded
from fmcore.flow.pixels import floats
from fmcore.ode.sampling import Sampling

DESCRIBED = ("quality.json", "histograms.csv")


def evaluate_pairs(params: Params, stage: Stage) -> Events:
    """Scores the stored samples of the couplings that the round trains on."""
    name, device, section = stage.name, device_of(params), params.evaluate
    folder = layout.couplings(name)
    parts, manifest = map_pairs(folder)
    how: Sampling = params.couple_of(name).sampling
    judge, count = judge_of(params, device), min(section.samples, sum(len(part.x0) for part in parts))
    scorer = scorer_of(judge, params, count)
    scoring = partial(Progress, "score", total=count, unit="pairs", of=f"couplings {name}")
    with workspace(stage, params) as work:
        yield scoring(done=0)
        stored, decode, done = Sharded(parts), decoding_of(params, device), 0
        for rows in torch.split(torch.arange(count), section.batch):
            scorer.add(decode(floats(stored.at(rows).x1).to(device)))
            done += len(rows)
            yield scoring(done=done)
        found = rows_of(
            [scorer.scores()],
            model=layout.coupled(name),
            rounds=manifest["rounds"],
            how=how,
            nfe=manifest["network_evaluations"],
            seed=params.seed,
        )
        out = work / "out"
        write_scores(out, found)
        check(folder, *DESCRIBED)
        for file in DESCRIBED:
            write_file(out / file, (folder / file).read_bytes())
        publish(out, layout.scores(layout.coupled(name)))
        for row, _ in found:
            yield Metrics(0, {f"couplings/{row.metric}": row.value})
        yield Table("quality", [read_json(folder / "quality.json")])
