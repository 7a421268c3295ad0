"""This machine in a few words."""

import platform
from pathlib import Path


def device() -> str:
    """The machine in a few words: its GPU if it has one, else its processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return f"{name}, {torch.get_num_threads()} thread{'' if torch.get_num_threads() == 1 else 's'}"
