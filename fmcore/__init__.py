"""fmcore: conditional flow matching, reflow and few-step distillation.

Time runs from noise to data: x_0 ~ N(0, I) at t = 0, data x_1 at t = 1, and a velocity field v carries
one to the other along dx = v(x, t) dt. The package is built of paths, couplings, velocity fields and one
`integrate`; see `docs/conventions.md`. `docs/library.md` shows its use in programs.

`import fmcore` is cheap: torch and the submodules load when they are first used.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from fmcore.fitting import fit as fit
    from fmcore.flow.couplings import Pairs as Pairs
    from fmcore.flow.fields import Guidance as Guidance
    from fmcore.flow.training import TrainConfig as TrainConfig
    from fmcore.flow.training import flow_objective as flow_objective
    from fmcore.flow.training import train as train
    from fmcore.model import Model as Model
    from fmcore.model import load as load
    from fmcore.models.networks import MLP as MLP
    from fmcore.models.networks import UNet as UNet
    from fmcore.models.networks import UNet1D as UNet1D
    from fmcore.ode.likelihood import log_likelihood as log_likelihood
    from fmcore.ode.reflow import generate_pairs as generate_pairs
    from fmcore.ode.sampling import Sampling as Sampling
    from fmcore.ode.solvers import integrate as integrate
    from fmcore.ode.solvers import trajectory as trajectory

__version__ = "0.1.0"

_ROOMS = ("analytic", "disk", "endings", "export", "flow", "intake", "models", "ode", "score", "verdict")
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=_ROOMS,
    submod_attrs={
        "fitting": ["fit"],
        "flow.couplings": ["Pairs"],
        "flow.fields": ["Guidance"],
        "flow.training": ["TrainConfig", "flow_objective", "train"],
        "model": ["Model", "load"],
        "models.networks": ["MLP", "UNet", "UNet1D"],
        "ode.likelihood": ["log_likelihood"],
        "ode.reflow": ["generate_pairs"],
        "ode.sampling": ["Sampling"],
        "ode.solvers": ["integrate", "trajectory"],
    },
)
