"""Stage `distill`: the few-step student."""

from flows import layout
from flows.events import Events
from flows.params.schema import Params
from flows.stages.on_couplings import lesson
from flows.stages.training import finish, run_training
from flows.workshop.entry import Stage
from flows.workshop.setup import device_of, fresh
from flows.workshop.workspace import made_by, workspace
from fmcore.disk.dataset import load_dataset
from fmcore.endings.regression import Regression
from fmcore.flow.couplings import Coupling, Flipped
from fmcore.flow.training import new_state


def distill(params: Params, stage: Stage) -> Events:
    """The student, trained as its ending says."""
    name, section = stage.name, params.distill
    config, ending = section.train, Regression(section.k, section.distance, section.match)
    of = yield from lesson(params, name, section.init, section.couplings, section, config.images)
    objective = ending.objective(
        Flipped(of.pairs) if params.flip else of.pairs,
        _real(params, labelled=of.start.num_classes is not None) if ending.match else None,
        batch_size=config.batch_size,
        precision=params.precision,
        convention=of.start.convention,
    )
    with workspace(stage, params) as work:
        state = new_state(of.start.network.train().requires_grad_(True), config)
        yield from run_training(name, work, state, objective, config, params.seed)
        about = {"rounds": of.teacher.manifest["rounds"], "k": ending.k}
        yield from finish(name, work, state, config, of.start, made_by(params, stage) | of.origin | about)


def _real(params: Params, *, labelled: bool) -> Coupling:
    """The data, flipped at random if asked for."""
    data = fresh(load_dataset(layout.DATASET), device_of(params), labelled=labelled)
    return Flipped(data) if params.flip else data
