"""What every test relies on: shapes checked in fmcore, one thread, no network, GPU tests only with a GPU."""

import ctypes
import ipaddress
import os
import signal
import socket
import tempfile

import beartype
import hypothesis
import jaxtyping
import pytest
import torch

# An int is a float to every Python type checker; beartype must be told.
check_types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
jaxtyping.install_import_hook("fmcore", f"{__name__}.check_types")


# Started in the background of a shell, pytest would ignore Ctrl-C, and so would what it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: the sums of a matrix product depend on their number, and small tensors are slower on more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# The user's login is not to be touched, nor DVC's folder that others can write to.
_aside = tempfile.TemporaryDirectory(prefix="fmcore-tests-")
os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_CACHE_HOME"] = _aside.name
os.environ["DVC_SITE_CACHE_DIR"] = os.path.join(_aside.name, "dvc")

hypothesis.settings.register_profile("fmcore", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("fmcore")


# --- which processor there is ---------------------------------------------------------------------------------
#
# `auto` computes in bfloat16 on some processors and in float32 on others. A test that passes on one kind says
# nothing of the other, so a test that leaves it to the processor runs as on both (`precisions`), or says that it
# does not matter to it (`native`).

from fmcore.flow import fields, speed  # noqa: E402  after the import hook

_has_bfloat16 = fields.has_bfloat16
_said: list[bool] = []  # whether the processor is said to have it
_item: list[pytest.Item] = []


def _guarded(device):
    if _said:
        return _said[-1]
    if _item and not _item[-1].get_closest_marker("native"):
        pytest.fail(
            "what this test computes depends on whether the processor has bfloat16: mark it `precisions`, to run "
            "it as on both kinds, or `native`, if that cannot matter",
            pytrace=False,
        )
    return _has_bfloat16(device)


fields.has_bfloat16 = _guarded


@pytest.fixture(scope="module", autouse=True)
def bfloat16(request):
    """The processor is said to have bfloat16, or not to have it; None where a test does not ask."""
    said = getattr(request, "param", None)
    if said is not None:
        _said.append(said)
    yield said
    if said is not None:
        _said.pop()


def pytest_generate_tests(metafunc):
    if metafunc.definition.get_closest_marker("precisions"):
        both = [pytest.param(True, id="bfloat16"), pytest.param(False, id="float32")]
        metafunc.parametrize("bfloat16", both, indirect=True, scope="module")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _item.append(item)
    try:
        return (yield)
    finally:
        _item.pop()


# --- memory ---------------------------------------------------------------------------------------------------
#
# The command line keeps all memory that it frees, which makes trainings faster. Here, many commands run in one
# process, which would keep the largest block of each: it grew to 4 GB. So large blocks go back.

LARGE_BLOCK, KEPT = 16 * 2**20, 256 * 2**20  # bytes
if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
    mallopt(speed.M_MMAP_THRESHOLD, LARGE_BLOCK)
    mallopt(speed.M_TRIM_THRESHOLD, KEPT)
speed.keep_freed_memory = lambda: False


# Files that take half a minute or more are begun first, so that no core waits at the end.
# fmt: off
LONG = (
    "pipeline", "mistakes", "prefect", "prefect_pipeline", "postman", "pages", "variants", "standard_tools",
    "extending", "speed", "registry", "database", "cifar_preset", "pretended", "mlflow_page",
    "evaluate_command", "gpu_script", "login",
)
# fmt: on


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _is_here(host):
    if host in (None, "", "localhost", b"localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Anything but this machine is out of reach: an OSError, as without a network."""
    patch = pytest.MonkeyPatch()
    resolve = socket.getaddrinfo

    def guarded(method):
        def connect(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
                raise OSError(f"tests may not use the network, and this one asked for {address}")
            return method(self, address)

        return connect

    def guarded_resolve(host, *args, **kwargs):
        if not _is_here(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests may not use the network, not even to find {host}")
        return resolve(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    patch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    patch.undo()
