"""What a caller gives by name, or as the thing itself."""

from collections.abc import Callable, Mapping
from typing import Any


def named(value: Any, family: Mapping[str, Callable[..., Any]], what: str) -> Any:
    """The member of a family that a name stands for, with its own defaults; anything else as it is.

    Raises:
        ValueError: for an unknown name; it lists the known ones.
        TypeError: for what is no name and cannot be called, as every member of a family can.

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
