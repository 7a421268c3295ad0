"""Values as journals hold them."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: object) -> Any:
    """A value as JSON can hold it; numbers that JSON lacks become text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else str(value)  # NumPy's and PyTorch's numbers
