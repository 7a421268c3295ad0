"""Stage `check`: params.yaml and the data it names, before anything expensive starts.

It runs first whenever params.yaml changed, and a mistake stops `dvc repro` there. Its output is a digest of the
data's files, so nothing reruns because of it unless they changed.
"""

from pathlib import Path

import torch

from flows import layout
from flows.events import Events, Note
from flows.params import Params
from flows.setup import device_of
from fmcore.store import write_json


def check(params: Params, name: str) -> Events:
    """Params were validated on the way here; this looks at the files they name."""
    digest = params.data.check()
    weights = params.features.weights
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"features.weights: no file {weights!r}; expected torch-fidelity's Inception weights")
    device_of(params)
    with torch.device("meta"):  # weighs nothing, and refuses what cannot be built
        params.network.build(params.data.shape, None)
    yield Note(f"params.yaml is valid: {', '.join(params.models)} on {params.data.name}")
    write_json(layout.CHECKED, {"data_sha256": digest})
