"""How good samples are, how straight a flow is, and how sure one can be of either."""

from pkgutil import iter_modules

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=[m.name for m in iter_modules(__path__)])
