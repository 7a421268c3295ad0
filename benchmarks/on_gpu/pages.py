"""What the GPU benchmark found, as Markdown."""

import os
import platform
from typing import Any

import torch

from benchmarks.on_gpu.sizes import OK, Row

TITLES = {
    "correctness": "Against the same on the CPU in float32; differences over the largest value",
    "resume": "Training resumed from a checkpoint against 40 steps at once",
    "matmul": "Matrix products, without TensorFloat32",
    "training": "Training; three forward passes' operations a step, MFU against the bfloat16 products above",
    "loading": "Drawing noise, images or pairs in the compiled loop",
    "pairs": "Making pairs, from noise to a file of float16",
    "one step": "Sampling in one step",
}


def first_line(error: Exception) -> str:
    """An error as a table has room for it."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def wrong(record: Row) -> bool:
    """Whether something differs from the CPU's by more than it should, or could not start."""
    return not all(row.get(OK, True) for row in record.get("rows", []))


def cell(value: Any) -> str:
    """A value as the tables show it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def tables(rows: list[Row]) -> list[str]:
    """Rows of dictionaries as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[cell(row[key]) if key in row else "" for key in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]


def page(about: str, records: dict[str, Any], left: list[str]) -> str:
    """All that is known of this device, as Markdown."""
    lines = [f"`python benchmarks/gpu.py` on {about}:", ""]
    for section, title in TITLES.items():
        rows = [
            row
            for name, record in records.items()
            if name.partition("/")[0] == section
            for row in record.get("rows", [])
        ]
        lines += [title, "", *tables(rows), ""] if rows else []
    failed = [f"- {name}: {record['error']}" for name, record in records.items() if record["status"] == "failed"]
    lines += ["Failed:", "", *failed, ""] if failed else []
    lines += [f"Left for another call: {', '.join(left)}.", ""] if left else []
    return "\n".join(lines)


def described(device: torch.device, quick: bool) -> tuple[str, str]:
    """What results are kept under (the device and torch's version), and a line about the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    key = f"{name}, torch {torch.__version__}{', quick' if quick else ''}"
    if device.type != "cuda":
        return key, key
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return key, f"{key}, {versions}, {memory:.0f} GiB, {os.cpu_count()} host threads"
