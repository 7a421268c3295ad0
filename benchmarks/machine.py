"""The kind of machine that results belong to, as the name of their folder: `python benchmarks/machine.py`."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from fmcore.fields import autocast_dtype


def kind() -> str:
    """The GPU's name, or what the processor computes with."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    halves = autocast_dtype("auto", torch.device("cpu")) is not None
    return f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}{'-bf16' if halves else ''}"


if __name__ == "__main__":
    print(kind())
