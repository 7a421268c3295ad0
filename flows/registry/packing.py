"""A model folder as the registry keeps it: what `fmcore.load` reads, and beside it what lets MLflow serve it."""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fmcore
from flows.registry import MODEL, SERVED

NEEDED = (
    "torch",
    "numpy",
    "safetensors",
    "jaxtyping",
    "psutil",
    "tqdm",
    "diffusers",
    "torchdiffeq",
    "lazy-loader",
)


def packed(folder: Path, target: Path, model_id: str) -> Path:
    """Copies a model folder to `target`, in MLflow's form of a model from code, and returns `target`."""
    source = target.with_name(f"{target.name}.source") / MODEL  # MLflow keeps the folder's name
    for old in (target, source.parent):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(folder, source)
    with _quiet():
        import mlflow.pyfunc
        from mlflow.models import Model
    with _quiet():  # again, for the import may have changed what is said
        mlflow.pyfunc.save_model(
            target,
            python_model=str(SERVED),
            artifacts={MODEL: str(source)},
            code_paths=[str(Path(fmcore.__file__).parent)],
            signature=signature(json.loads((folder / "config.json").read_text())),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in NEEDED],
            mlflow_model=Model(model_id=model_id),
        )
    shutil.rmtree(source.parent)
    for caches in list((target / "code").rglob("__pycache__")):
        shutil.rmtree(caches)
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Says nothing of what MLflow thinks of its own types, or misses in a model that has a signature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def signature(config: Mapping[str, Any]) -> Any:
    """What a model takes and gives, by its config.json."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    asked = [ColSpec("long", name) for name in ("count", "nfe")]
    # What a row may lack, a table holds as a number that may be none at all.
    asked += [ColSpec("double", name, required=False) for name in ("seed", "label")]
    shape = (config.get("encoding") or config)["shape"]  # latents come as images
    images = len(shape) == 3 and config.get("units") is None
    kind = np.dtype("uint8" if images else "float32")
    return ModelSignature(Schema(asked), Schema([TensorSpec(kind, (-1, *shape))]))
