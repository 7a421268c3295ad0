"""How students are trained, a file each, and which steps they may take."""

from typing import get_args

from fmcore.endings.matched import Matched
from fmcore.endings.regression import Regression

Ending = Regression | Matched
ENDINGS = {ending.name: ending for ending in get_args(Ending)}
