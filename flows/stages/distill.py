"""Stage `distill`: the few-step student."""

from flows.events import Events
from flows.params.schema import Params
from flows.stages.matching import train_matched
from flows.stages.on_couplings import lesson
from flows.stages.training import finish, run_training
from flows.workshop.entry import Stage
from flows.workshop.workspace import made_by, workspace
from fmcore.endings.matched import Matched
from fmcore.flow.couplings import Coupling, Flipped
from fmcore.flow.training import new_state


def distill(params: Params, stage: Stage) -> Events:
    """The student, trained as its ending says."""
    name, section = stage.name, params.distill
    config, ending = section.train, section.ending
    of = yield from lesson(params, name, section.init, section.couplings, section, config.images)
    pairs: Coupling = Flipped(of.pairs) if params.flip else of.pairs
    about = {"rounds": of.teacher.manifest["rounds"], "coupling": "stored"}
    with workspace(stage, params) as work:
        state = new_state(of.start.network.train().requires_grad_(True), config)
        if isinstance(ending, Matched):
            about["matched"] = yield from train_matched(params, of.start, pairs, ending, work, state)
        else:
            objective = ending.objective(
                pairs,
                batch_size=config.batch_size,
                precision=params.precision,
                convention=of.start.convention,
            )
            yield from run_training(name, work, state, objective, config, params.seed)
            about["k"] = ending.k
        yield from finish(name, work, state, config, of.start, made_by(params, stage) | of.origin | about)
