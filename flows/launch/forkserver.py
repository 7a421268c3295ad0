"""A process with the slow imports done, from which the stages of one pipeline run are forked.

    dvc repro -> `python -m flows.launch` --socket--> `python -m flows.launch.forkserver` --fork--> the stage
                      (waits, forwards signals)          (imports, forks, ends with DVC)

A stage is one process either way, with the environment, folder, terminal and signals of the command DVC started.
If no warm process answers, that command runs the stage itself. Third parties' modules are imported here and
ours in the fork, so an edit of the code counts at once. It serves one pipeline run and ends with it; it runs no
threads (NumPy's BLAS has some, and handlers for forks) and touches no GPU. Only its own user can reach it.
"""

import array
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flows.local.process import PIPELINE, pipeline_key, pipeline_process, process_named

FIRST = ("torch", "pydantic", "ruamel.yaml", "safetensors.torch", "jaxtyping", "tqdm")
LATER = ("torch._dynamo", "matplotlib.figure")  # for torch's optimizers, and for pictures
CREDENTIALS = struct.Struct("3i")


def run(stage: str) -> int:
    """Runs a stage in a fork of the warm process if one answers, else here, starting one for the next stage."""
    key = os.environ.setdefault(PIPELINE, pipeline_key())
    connection = _connect(key)
    if connection is None:
        _start(key)
        return run_here(stage)
    with connection:
        status = _follow(connection)
    return run_here(stage) if status is None else status


def run_here(stage: str) -> int:
    """Runs a stage in this process."""
    from flows.launch.runner import run

    return run(stage)


def _folder() -> Path:
    """A folder for sockets that nobody else can write to (socket names must be short, so not the checkout)."""
    folder = Path(tempfile.gettempdir()) / f"fmcore-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to or is open to others; remove it")
    return folder


def _connect(key: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(_folder() / key))
        if _user_of(connection) == os.getuid():
            return connection
    except OSError:
        pass
    connection.close()
    return None


def _user_of(connection: socket.socket) -> int:
    """The user at the other end, as the kernel knows it."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    user: int = CREDENTIALS.unpack(peer)[1]
    return user


def _start(key: str) -> None:
    subprocess.Popen(
        [sys.executable, "-m", "flows.launch.forkserver", key],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _follow(connection: socket.socket) -> int | None:
    """Hands over this process's terminal and environment and waits for the exit status; None if nothing forked."""
    request = json.dumps({"environment": dict(os.environ), "folder": os.getcwd()}).encode()
    try:
        socket.send_fds(connection, [struct.pack("I", len(request))], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(4)
    except OSError:
        return None
    if len(answer) < 4:
        return None
    (pid,) = struct.unpack("I", answer)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    status = connection.recv(1)
    return status[0] if status else 128 + signal.SIGKILL


def serve(key: str) -> None:
    """Forks a stage for every request, until the pipeline that `key` names is over."""
    path = _folder() / key
    _sweep(path.parent)
    pipeline = pipeline_process()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: a stage reports its status itself
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.bind(str(path))
        except OSError:
            return  # another one serves this pipeline
        try:
            for name in FIRST:
                import_module(name)
            later = list(LATER)
            server.listen()
            while pipeline.alive():
                if later and not select.select([server], [], [], 0)[0]:
                    import_module(later.pop(0))
                elif select.select([server], [], [], 0.5)[0]:
                    connection, _ = server.accept()
                    with connection:
                        if _user_of(connection) == os.getuid() and os.fork() == 0:
                            server.close()
                            _become(connection)
        finally:
            path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Removes the sockets of servers that were killed: their pipelines are over."""
    for path in folder.iterdir():
        pipeline = process_named(path.name)
        if pipeline and not pipeline.alive():
            path.unlink(missing_ok=True)


def _become(connection: socket.socket) -> NoReturn:
    """In the fork: takes the caller's place, runs the stage, reports the status, ends."""
    status = 1
    try:
        header, handles, _, _ = socket.recv_fds(connection, 4, 3)
        (size,) = struct.unpack("I", header)
        request = json.loads(connection.recv(size, socket.MSG_WAITALL))
        for target, handle in enumerate(array.array("i", handles)):
            os.dup2(handle, target)
            os.close(handle)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.path[0] = request["folder"]
        connection.sendall(struct.pack("I", os.getpid()))
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        status = run_here(os.environ["DVC_STAGE"])
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            connection.sendall(bytes([status]))
        finally:
            os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """Ends this process when the caller is gone: it was killed, and killing it must stop the stage."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
