"""The pipeline around `fmcore`: stages, their parameters, and what watches them (Prefect, MLflow, DVC)."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.registry.loading import load as load

# OpenMP's threads spin while they wait for each other. When anything else wants the cores (a server, a browser), a
# spinning thread holds the core that the last thread needs, and training slows down up to thirty times. Spinning
# briefly and then sleeping costs nothing measurable on an idle machine (docs/LOG.md has the figures). OpenMP reads
# this variable when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def __getattr__(name: str) -> object:
    """`flows.load`, which is imported when it is first used."""
    if name != "load":
        raise AttributeError(f"module 'flows' has no attribute {name!r}; it has load")
    from flows.registry.loading import load

    return load
