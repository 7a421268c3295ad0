"""Endings: ways to train a student, one file each. An ending also decides which steps its student may take."""

from typing import get_args

from fmcore.endings.matched import Matched
from fmcore.endings.regression import Regression

Ending = Regression | Matched
ENDINGS = {ending.name: ending for ending in get_args(Ending)}
