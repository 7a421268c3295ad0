"""Endings: ways to train a student, one file each. An ending also decides which steps its student may take."""

from typing import get_args

from fmcore.endings.consistency import Consistency
from fmcore.endings.lagrangian import Lagrangian
from fmcore.endings.maps import MapEnding
from fmcore.endings.matched import Matched
from fmcore.endings.matching import Matching
from fmcore.endings.meanflow import MeanFlow
from fmcore.endings.regression import Regression
from fmcore.endings.shortcut import Shortcut

Ending = Regression | Matched | Consistency | Shortcut | Lagrangian | MeanFlow
ENDINGS = {ending.name: ending for ending in get_args(Ending)}


def matching_of(ending: Ending) -> Matching | None:
    """How an ending matches its student's ends to data; None if it does not."""
    return ending.match if isinstance(ending, Matched | MapEnding) else None
