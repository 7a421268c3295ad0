"""The program that serves a registered model.

A copy of it lies in the registry beside the weights, and MLflow runs it (`mlflow.pyfunc.load_model`, `mlflow
models serve`): a model from code, so no pickle is read. It needs `fmcore`, a copy of which lies there too, and
nothing of the pipeline.

A request is a row: `count` samples by `nfe` Euler steps, with a `seed` (0 if there is none) and, of a model with
classes, a `label`. The answer holds the samples of all rows: images of 8 bits, (N, C, H, W), or
what else the data is, in its units.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

MOST = 10_000  # samples a request


class Sampler(PythonModel):  # type: ignore[misc]
    """Samples by request."""

    def load_context(self, context: Any) -> None:
        """Loads the weights, onto a GPU if there is one."""
        import torch

        import fmcore

        self.model = fmcore.load(context.artifacts["model"], "cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Draws what the rows of a table ask for.

        Raises:
            ValueError: if they ask for too many samples, for a label the model does not know, or for steps that it
                was not made for.
        """
        import torch

        from fmcore.flow.pixels import quantise

        rows = model_input.to_dict("records")
        counts = [int(row["count"]) for row in rows]
        if min(counts, default=0) < 1 or sum(counts) > MOST:
            raise ValueError(f"count: expected rows of 1 or more, and at most {MOST} together, got {counts}")
        samples = torch.cat([self._drawn(row) for row in rows])
        return (quantise(samples) if self.model.makes_images else samples).numpy()

    def _drawn(self, row: Mapping[Any, Any]) -> Any:
        asked = {str(key): float(value) for key, value in row.items() if value is not None and value == value}
        if broken := [f"{key} {value}" for key, value in asked.items() if value != int(value)]:
            raise ValueError(f"expected whole numbers, got {', '.join(broken)}")
        whole = {key: int(value) for key, value in asked.items()}
        return self.model.sample(whole["count"], whole["nfe"], seed=whole.get("seed", 0), label=whole.get("label"))


set_model(Sampler())
