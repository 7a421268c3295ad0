"""What makes a run faster without changing what it computes: memory layout, compilation, the allocator.

Each choice depends on the kind of machine and on how much work the whole run is, never on a timing, so a resumed
run makes the same one. docs/LOG.md has the measurements behind the rules for CPUs; those for GPUs are not measured
yet.
"""

import copy
import ctypes
from collections.abc import Callable
from math import prod
from shutil import which

import psutil
import torch
from torch import Tensor, nn

from fmcore.flow.fields import autocast_dtype

COMPILING = ("auto", "on", "off")
# On a CPU compiling takes up to a minute and then saves a fifth to a third of sampling a U-Net. A run of this many
# floating-point operations takes a quarter of an hour or more on such a device. The GPU's figure is a guess until
# benchmarks/gpu.py has run on one.
PAYS_ON_CUDA, PAYS_ON_CPU = 1e17, 1e15
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees; False where the C library cannot be told so.

    By default glibc hands large blocks back to the kernel as soon as they are freed, and each training step then
    pays for the same pages again: an MLP's step took 20 ms instead of 12. It is a setting of the whole
    process, so programs make it, not the library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Older versions of glibc refuse a threshold above 32 MiB.
    blocks = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20)
    trims = mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    return bool(blocks and trims)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def moved(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. It goes to a GPU through pinned memory, so that the host need not wait."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def room(device: torch.device) -> int:
    """Bytes that data may fill on a device: half of what is free there; the work needs the rest."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return int(psutil.virtual_memory().available) // 2


def largest_batch(evaluate: Callable[[int], object], shape: tuple[int, ...], device: torch.device) -> int:
    """The batch to sample in: on a GPU the largest power of two that fits, on a CPU one that keeps it busy.

    Main arguments:
        evaluate: evaluates the field on the given number of samples.
    """
    if device.type != "cuda":
        return max(16, min(1024, _power_of_two(2**20 // prod(shape))))
    evaluate(32)  # libraries allocate memory of their own the first time
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    evaluate(64)
    # This counts a share of the memory that any batch takes, and so errs on the small side. That is cheaper: each
    # batch that does not fit would be tried and halved.
    a_sample = max(1, (torch.cuda.max_memory_allocated(device) - before) // 64)
    return max(32, min(8192, _power_of_two(room(device) // a_sample)))


def _power_of_two(most: int) -> int:
    return 1 << max(0, most.bit_length() - 1)


def flops(network: nn.Module, shape: tuple[int, ...], num_classes: int | None) -> float:
    """Floating-point operations of one forward pass of one sample; training costs three times that."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    x, t = torch.zeros(1, *shape, device=device), torch.zeros(1, device=device)
    label = None if num_classes is None else torch.zeros(1, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t, label)
    return float(counter.get_total_flops())


def prepare(network: nn.Module, precision: str, compiling: str, *, work: float, training: bool) -> str:
    """Chooses the network's memory layout and whether to compile it, in place; returns the choice in words.

    Main arguments:
        compiling: auto, on or off.
        work: floating-point operations of the whole run.
        training: whether gradients will be taken.

    Raises:
        ValueError: if `compiling` is unknown, or is `on` without a C++ compiler.
    """
    if compiling not in COMPILING:
        raise ValueError(f"unknown compile {compiling!r}: expected one of {', '.join(COMPILING)}")
    device = next(network.parameters()).device
    dtype = autocast_dtype(precision, device)
    said = ["float32" if dtype is None else "bfloat16 inside the network"]
    # In bfloat16 on a CPU this layout costs group norms several times what it saves in convolutions.
    images = any(isinstance(module, nn.Conv2d) for module in network.modules())
    if images and (device.type == "cuda" or (training and dtype is None)):
        network.to(memory_format=torch.channels_last)
        said.append("channels last")
    enough = PAYS_ON_CUDA if device.type == "cuda" else PAYS_ON_CPU
    # On a CPU compiling gained nothing in training, and slowed U-Nets down.
    pays = work >= enough and (device.type == "cuda" or not training)
    if compiling == "on" and not _compiler():
        raise ValueError(
            "compile: on needs a C++ compiler (g++ or clang++), found none; expected auto or off here"
        )
    if compiling == "on" or (compiling == "auto" and pays and _compiler()):
        network.compile()
        said.append("compiled")
    else:
        why = "switched off" if compiling == "off" else "would not pay" if not pays else "no C++ compiler"
        said.append(f"not compiled ({why}: {work:.1e} operations)")
    return ", ".join(said)


def eager(network: nn.Module) -> nn.Module:
    """The network, or an uncompiled copy if it is compiled.

    It is for a few evaluations apart from the run. In batches of other sizes each size would be compiled anew, and
    leave slower code for all. And compiled code cannot be differentiated more than once.
    """
    return network if network._compiled_call_impl is None else copy.deepcopy(network)


def _compiler() -> bool:
    return any(which(name) for name in ("g++", "clang++", "c++"))
