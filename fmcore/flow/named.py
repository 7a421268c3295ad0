"""Arguments that are a name or an object: a path may be given as `"linear"` or as `Linear()`."""

from collections.abc import Callable, Mapping
from typing import Any


def named(value: Any, family: Mapping[str, Callable[..., Any]], what: str) -> Any:
    """The object that a name stands for, made with its defaults; an object is returned as it is.

    Main arguments:
        family: what can be named, by name.
        what: the argument's name, for errors.

    Raises:
        ValueError: for an unknown name; it lists the known ones.
        TypeError: for a class, and for an object that cannot be called: every member of a family can be.

    Example:
        >>> from fmcore.flow.paths import PATHS
        >>> named("linear", PATHS, "path")
        Linear(sigma_min=0.0, name='linear')
    """
    if isinstance(value, str):
        if value not in family:
            raise ValueError(f"{what}: expected one of {', '.join(family)}, got {value!r}")
        return family[value]()
    if isinstance(value, type):
        raise TypeError(f"{what}: expected an object, got the class {value.__name__}: {value.__name__}()")
    if not callable(value):
        raise TypeError(f"{what}: expected a name ({', '.join(family)}) or an object, got {value!r}")
    return value
