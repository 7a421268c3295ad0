"""A CUDA device that is not there: its tensors lie on the host, compute what the host computes, and say `cuda:0`.

What a GPU would refuse is refused: an operation on tensors of both devices, a generator of the other one, NumPy's
view of a tensor on the device. What makes the host wait for a GPU is counted: values that come back, and copies
either way that are not asked to go on by themselves. So code meant for a GPU is run to the end where there is
none; how fast it is there and what its kernels round to, this does not tell.

For torch itself the tensors are on `meta`, whose autograd needs no driver; Python sees `cuda:0`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.utils._foreach_utils
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from fmcore.flow.paths import log_snr_knots

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
BETWEEN = {aten.copy_.default, aten._to_copy.default}  # devices
PICKING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
JOINING = {aten.cat.default, aten.stack.default}  # for which a number from the host is a tensor like any other
HOST_ONLY = {"aten::histogram", "aten::histogramdd"}
WAITING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten._linalg_eigh.default, aten.repeat_interleave.Tensor),
}


class There(torch.Tensor):
    """A tensor on the device that is not there."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self):
        return DEVICE

    @property
    def is_cuda(self):
        return True

    def numpy(self, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, **options):
        return f"There({self.inner!r})"

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return There(tensors["inner"])

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError(f"{operation}: a tensor of the pretended device outside of it")


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _changed(change, value):
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(_changed(change, each) for each in value) if isinstance(value, list | tuple) else value


def _on_host(value):
    return _changed(lambda x: x.inner if isinstance(x, There) else x, value)


class _Operations(TorchDispatchMode):
    """Runs every operation of torch on the host, and refuses what a GPU would."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is aten._pin_memory.default:
            return args[0]
        asked = kwargs.get("device")
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        there = [x for x in tensors if isinstance(x, There)]
        # `meta` is what torch's own compositions ask for, when they make a number beside a tensor.
        to_there = bool(there) if asked is None else torch.device(asked).type in ("cuda", "meta")
        if there:
            self._check(operation, args, tensors)
        if (there or to_there) and self._waits(operation, args, kwargs, to_there):
            self.waits.append(operation)
        options = {key: _on_host(value) for key, value in kwargs.items() if key != "pin_memory"}
        if asked is not None:
            options["device"] = "cpu" if to_there else asked
        found = operation(*_on_host(args), **options)
        if operation is aten.copy_.default and not isinstance(args[0], There):
            return args[0]
        if not to_there:
            return found
        wrapped = _changed(There, found)
        aliased = there and any(each.alias_info for each in operation._schema.returns)
        return return_and_correct_aliasing(operation, args, kwargs, wrapped) if aliased else wrapped

    def _waits(self, operation, args, kwargs, to_there):
        if operation is aten._to_copy.default:  # from one to the other; a copy on the device is only begun
            return to_there != isinstance(args[0], There) and not kwargs.get("non_blocking")
        if operation is aten.copy_.default:
            return isinstance(args[0], There) != isinstance(args[1], There) and not any(args[2:])
        if operation in PICKING:  # a mask says how many only when it has been looked at
            return any(x is not None and x.dtype == torch.bool for x in args[1])
        return operation in WAITING

    def _check(self, operation, args, tensors):
        wrong = [x for x in tensors if not isinstance(x, There) and (x.ndim or operation in JOINING)]
        if operation in PICKING:  # by places that may lie on the host, for a device's tensor
            ours = isinstance(args[0], There)
            values = [x for x in args[2:3] if not isinstance(x, There) and isinstance(x, torch.Tensor) and x.ndim]
            wrong = values if ours else tensors[:1]
        written = operation._schema.is_mutable and isinstance(args[0], torch.Tensor)
        if written and not isinstance(args[0], There):
            wrong = tensors[:1]
        if operation in BETWEEN:
            wrong = []
        if wrong or operation._schema.name in HOST_ONLY:
            shapes = [tuple(x.shape) for x in wrong]
            raise RuntimeError(f"{operation}: expected all tensors on one device, got {shapes} on the host")


class _Calls(TorchFunctionMode):
    """What torch decides before its operations: the index of a device, and whether a generator belongs there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator, device = kwargs.get("generator"), kwargs.get("device")
        if device is None:
            device = next((x.device for x in args if isinstance(x, torch.Tensor)), None)
        if generator is not None and generator.device.type != torch.device(device or "cpu").type:
            raise RuntimeError(f"{function.__name__}: a generator on {generator.device}, a tensor on {device}")
        args = tuple(_indexed(value) for value in args)
        options = {key: _indexed(value) for key, value in kwargs.items()}
        if function in (torch.tensor, torch.as_tensor) and options.get("device") == DEVICE:
            return function(*args, **{**options, "device": "cpu"}).to(DEVICE)
        return function(*args, **options)


def _indexed(value):
    named = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return DEVICE if named and torch.device(value).type == "cuda" else value


class _Generator(torch.Generator):
    """A generator that says on which device it is."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.where = _indexed(torch.device(device))
        return made

    @property
    def device(self):
        return self.where


class _Event(torch.Event):
    """Work on a device that is not there has always been done."""

    def __new__(cls, device):
        return super().__new__(cls, "cpu")

    def record(self):
        pass

    def synchronize(self):
        pass


@contextmanager
def cuda(free: int = 2**33) -> Iterator[list]:
    """Within it there is a CUDA device with `free` bytes; it gives the operations the host has waited for."""
    waits: list = []

    @contextmanager
    def modes():
        with _Operations(waits), _Calls():
            yield

    submit = ThreadPoolExecutor.submit

    def submitted(pool, work, *args, **kwargs):
        def inside():
            with modes():  # they are those of a thread
                return work(*args, **kwargs)

        return submit(pool, inside)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_bf16_supported": lambda including_emulation=True: including_emulation,  # so `auto` is float32
            "mem_get_info": lambda device: (free, 2 * free),
            "reset_peak_memory_stats": lambda device: None,
            "memory_allocated": lambda device: 0,
            "max_memory_allocated": lambda device: 2**26,
            "synchronize": lambda device: None,
            "empty_cache": lambda: None,
            "get_device_name": lambda device: "pretended",
            "get_device_properties": lambda device: type("Properties", (), {"total_memory": 2 * free}),
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.backends.cudnn, "version", lambda: 0)
        patch.setattr(torch, "Event", _Event)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(
            torch.utils._foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["cuda", "meta"]
        )
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda optimizer: None)
        patch.setattr(ThreadPoolExecutor, "submit", submitted)
        stack.callback(log_snr_knots.cache_clear)  # it keeps tensors by device
        stack.enter_context(modes())
        yield waits
