"""Images, and functions of a user, that feature extractors are tried on."""

import sys
from itertools import count

from fmcore.flow.pixels import quantise
from fmcore.intake.known import Digits


def digits(count=1797):
    data = Digits().load()
    return quantise(data.x1[:count]), data.label[:count]


NAMES = (f"nets_of_a_user_{i}" for i in count())
MEANS = "def means(pixels):\n    return pixels.float().mean((2, 3))\n"


def module_writer(tmp_path, monkeypatch):
    """What writes a module into the folder, made the current one, and returns its name, each time another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text):
        name = next(NAMES)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write
