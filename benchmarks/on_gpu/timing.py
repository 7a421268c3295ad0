"""Seconds of what a GPU does: candidates take turns, and medians count."""

import statistics
import time

import torch

from benchmarks.on_gpu.sizes import Bench, Step


def synchronise(device: torch.device) -> None:
    """Waits for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device, work: Step, times: int = 1) -> float:
    """Seconds of one run of some work, the GPU's part included."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - start) / times


def interleaved(bench: Bench, candidates: dict[str, Step]) -> dict[str, float]:
    """Median seconds of each candidate, in turns; fewer rounds where they take long."""
    size, times = bench.size, {}
    for name, work in candidates.items():
        once = clock(bench.device, work)
        if once < 15:  # libraries start, kernels are chosen; what takes longer is run once a turn anyway
            once = clock(bench.device, work)
        times[name] = max(1, min(200, round(size.turn_seconds / once)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for k in range(size.rounds):
        if k and time.perf_counter() - start > size.limit_seconds:
            break
        for name, work in candidates.items():
            seconds[name].append(clock(bench.device, work, times[name]))
    return {name: statistics.median(found) for name, found in seconds.items()}
