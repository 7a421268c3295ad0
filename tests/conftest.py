"""What every test relies on: shapes checked in fmcore, one thread, no network, GPU tests only with a GPU."""

import ipaddress
import os
import signal
import socket

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

hypothesis.settings.register_profile("fmcore", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("fmcore")


def pytest_collection_modifyitems(items):
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
