"""The kind of processor that results belong to, as the name of their folder: `python benchmarks/machine.py`."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from fmcore.flow.fields import autocast_dtype


def kind() -> str:
    """What the processor computes with."""
    halves = autocast_dtype("auto", torch.device("cpu")) is not None
    return f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}{'-bf16' if halves else ''}"


if __name__ == "__main__":
    print(kind())
