"""Stage `check`: params.yaml and the data it names, before anything expensive starts.

Its output is the same for every valid file, so nothing reruns because of it; but it runs first whenever
params.yaml changed, and a mistake stops `dvc repro` there.
"""

from pathlib import Path

from flows import layout
from flows.events import Events, Note
from flows.params import Params
from fmcore.store import write_json


def check(params: Params, name: str) -> Events:
    """Params were validated on the way here; this looks at the files they name."""
    params.data.check()
    weights = params.features.weights
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"features.weights: no file {weights!r}; expected torch-fidelity's Inception weights")
    yield Note(f"params.yaml is valid: {', '.join(params.models)} on {params.data.name}")
    write_json(layout.CHECKED, {"valid": True})
