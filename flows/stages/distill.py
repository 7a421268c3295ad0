"""Stage `distill@STUDENT`: a few-step student."""

from flows.events import Events
from flows.params.schema import Params
from flows.stages.on_couplings import set_up_training
from flows.stages.student_matching import train_matched
from flows.stages.training import finish, run_training
from flows.workshop.entry import Stage
from flows.workshop.workspace import made_by, workspace
from fmcore.endings import Ending
from fmcore.endings.maps import MapEnding
from fmcore.endings.matched import Matched
from fmcore.endings.regression import Regression
from fmcore.flow.couplings import Coupling, Flipped
from fmcore.flow.training import new_state


def distill(params: Params, stage: Stage) -> Events:
    """The student, trained as its ending says."""
    name, section = stage.name, params.distill_of(stage.name)
    ending: Ending = section.ending
    config, student = section.train, params.distill.students[name]
    as_map = isinstance(ending, MapEnding)
    init, round_name = student.init, student.couplings
    setup = yield from set_up_training(params, name, init, round_name, section, config.images, as_map=as_map)
    pairs: Coupling = Flipped(setup.pairs) if params.flip else setup.pairs
    about = {"rounds": setup.init.manifest["rounds"], "coupling": "stored", "ending": ending.name}
    with workspace(stage, params) as work:
        state = new_state(setup.start.network.train().requires_grad_(True), config)
        if isinstance(ending, Matched) or (isinstance(ending, MapEnding) and ending.match):
            about["matched"] = yield from train_matched(params, name, setup.start, pairs, ending, work, state)
        else:
            objective = ending.objective(
                pairs,
                batch_size=config.batch_size,
                precision=params.precision,
                convention=setup.start.convention,
            )
            yield from run_training(name, work, state, objective, config, params.seed)
        if isinstance(ending, Regression):
            about["k"] = ending.k
        yield from finish(name, work, state, config, setup.start, made_by(params, stage) | setup.origin | about)
