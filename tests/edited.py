"""Parameters with one value changed."""

import copy


def changed(raw, path, value):
    """A copy of the raw parameters with another value at a dotted path."""
    whole = copy.deepcopy(raw)
    *parents, last = path.split(".")
    at = whole
    for part in parents:
        at = at[part]
    at[last] = value
    return whole
