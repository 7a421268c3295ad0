"""How foreign data and models are read: images, tables and arrays, sets known by name, diffusion models."""

from pkgutil import iter_modules

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=[m.name for m in iter_modules(__path__)])
