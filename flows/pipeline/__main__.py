"""`python -m flows.pipeline`: the pipeline from the command line, recorded if a Prefect server answers."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.params.files import ParamsError
from flows.params.variation import Variation, parsed
from flows.pipeline import work
from flows.pipeline.children import Children
from flows.pipeline.experiments import CannotRun
from flows.pipeline.work import Outcome, Visit, Wish


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the pipeline; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Unhandled, SIGTERM would leave the stage's process group behind; Prefect's engine has a handler of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        given = {
            "stages": options.stages or None,
            "preset": options.preset,
            "overrides": parsed(options.set),
            "experiment": options.experiment,
            "snapshot": options.snapshot,
            "force": options.force,
        }
        return _start(given)
    except (ParamsError, CannotRun, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("stages", nargs="*", help="stages to reproduce, with all they depend on; default all")
    parser.add_argument("--force", action="store_true", help="run them even if nothing changed")
    parser.add_argument("--preset", metavar="NAME", help="an experiment with the parameters of presets/NAME.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an experiment with couple.nfe=8, say",
    )
    parser.add_argument("--experiment", metavar="NAME", help="the experiment's name")
    parser.add_argument("--snapshot", action="store_true", help="the experiment takes uncommitted edits along")
    return parser


def _start(given: dict[str, Any]) -> int:
    from dvc.repo import Repo

    from flows.local.api import live_api, past_proxies

    home = Path(Repo.find_root())
    server = live_api(home)
    if server is None:
        print("no Prefect server answers: running without one", file=sys.stderr)
        variation = Variation(given["preset"], overrides=given["overrides"])
        stages = tuple(given["stages"]) if given["stages"] else None
        wish = Wish(stages, variation, given["experiment"], given["snapshot"], given["force"])
        return run_without_server(home, wish)
    os.environ.update(past_proxies())
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.address, PREFECT_API_AUTH_STRING: server.login}):
        from flows.pipeline.flow import reflow_pipeline

        said = {key: value for key, value in given.items() if value is not None}
        state = reflow_pipeline(**said, return_state=True)
    if not state.is_completed():
        print(state.message, file=sys.stderr)
    return 0 if state.is_completed() else 1


def run_without_server(home: Path, wish: Wish) -> int:
    """Does what the flow does, printed instead of recorded."""
    from flows.local import lockfile

    with work.placed(home, wish, "experiment") as job, Children() as children:
        if line := lockfile.mend(job.root):
            print(line, file=sys.stderr)

        def meet(visit: Visit) -> Outcome:
            outcome = work.reproduced(job, children, visit, print)
            print(f"{outcome.stage}: {outcome.end}", flush=True)
            return outcome

        outcomes = work.walk(job, meet)
        broken = work.failure(outcomes)
        if broken:
            print(broken.text, file=sys.stderr)
            return 1
        if work.keep(job, outcomes) and job.experiment:
            print(f"kept as DVC experiment {job.experiment.name}; compare: dvc exp show")
    return 0


if __name__ == "__main__":
    sys.exit(main())
