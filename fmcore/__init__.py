"""fmcore: conditional flow matching, reflow and few-step distillation.

Time runs from noise to data: x_0 ~ N(0, I) at t = 0, data x_1 at t = 1, and a velocity field v carries
one to the other along dx = v(x, t) dt. The package is built of paths, couplings, velocity fields and one
`integrate`; see `docs/conventions.md`.

`import fmcore` is cheap: torch and the submodules load when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmcore.flow.training import train as train
    from fmcore.model import Model as Model
    from fmcore.model import load as load
    from fmcore.ode.reflow import generate_pairs as generate_pairs
    from fmcore.ode.solvers import integrate as integrate
    from fmcore.ode.solvers import trajectory as trajectory

__version__ = "0.1.0"

_HOMES = {
    "generate_pairs": ("fmcore.ode.reflow", "generate_pairs"),
    "integrate": ("fmcore.ode.solvers", "integrate"),
    "trajectory": ("fmcore.ode.solvers", "trajectory"),
    "Model": ("fmcore.model", "Model"),
    "load": ("fmcore.model", "load"),
    "train": ("fmcore.flow.training", "train"),
}

__all__ = ["Model", "generate_pairs", "integrate", "load", "train", "trajectory"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fmcore' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
