"""What belongs to one user alone: the login of the local pages, and to whom it may be shown.

The login is one text, `fmcore:PASSWORD`, in a file that nobody else can read. It lies outside of checkouts, so
that one login serves all of them. A port of this machine may be anybody's, so before the login goes to one, the
kernel is asked who listens there.
"""

import errno
import ipaddress
import os
import pwd
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from urllib.parse import urlsplit

USER = "fmcore"
LOGIN = re.compile(rb"[!-9;-~]+:[!-~]{12,}\s*")  # what HTTP and Prefect can compare: ASCII
LONGEST = 1000
SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # Linux's tables of them
LISTENING = "0A"


class NotPrivate(PermissionError):
    """A file or folder that must be this user's alone is not; the message says which, and what to do."""


def login_file() -> Path:
    """Where the login lies: `fmcore/login` in the user's folder for settings."""
    return _of_user("XDG_CONFIG_HOME", ".config") / "login"


def caches() -> Path:
    """The user's folder for what can be made again, made if there is none.

    Raises:
        OSError: if it cannot be made.
        NotPrivate: if others can look into it.
    """
    path = _of_user("XDG_CACHE_HOME", ".cache")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(path, path.lstat())
    return path


def _of_user(variable: str, usual: str) -> Path:
    given, home = (Path(os.environ.get(name, "")) for name in (variable, "HOME"))
    if not home.is_absolute():
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    return (given if given.is_absolute() else home / usual) / "fmcore"


def login() -> str | None:
    """The user's login, None if there is none yet.

    Raises:
        NotPrivate: if others can read or change it.
        ValueError: if the file holds something else.
    """
    path = login_file()
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for its writer
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(path) from None
        raise
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise NotPrivate(f"{path} is no file; expected one with the login: remove it")
        _check(path, state)
        text = os.read(handle, LONGEST + 1)
    finally:
        os.close(handle)
    if not LOGIN.fullmatch(text) or len(text) > LONGEST:
        raise ValueError(
            f"{path} holds no login: expected NAME:PASSWORD, 12 characters or more after the colon, all of them "
            "ASCII, no spaces; or remove it"
        )
    return text.decode().strip()


def made_login() -> str:
    """The user's login, made if there is none yet.

    Raises:
        OSError: if it cannot be kept.
        NotPrivate, ValueError: as `login`.
    """
    path = login_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(path.parent, path.parent.lstat())
    if known := login():
        return known
    handle, part = mkstemp(prefix=".login.", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{USER}:{secrets.token_urlsafe(18)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was faster: its login counts
            os.link(part, path)
    finally:
        os.unlink(part)
    made = login()
    assert made is not None
    return made


def is_private(path: Path) -> bool:
    """Whether a file is this user's and closed to all others."""
    try:
        _check(path, path.lstat())
    except OSError:
        return False
    return True


def _check(path: Path, state: os.stat_result) -> None:
    if stat.S_ISLNK(state.st_mode):
        raise _linked(path)
    if state.st_uid != os.geteuid():
        raise NotPrivate(f"{path} belongs to another user; expected it to be yours: remove it")
    if state.st_mode & 0o077:
        raise NotPrivate(f"{path} is open to other users; expected it to be yours alone: chmod go= {path}")


def _linked(path: Path) -> NotPrivate:
    return NotPrivate(f"{path} is a link; expected a file or folder of yours: remove it")


def is_loopback(address: str) -> bool:
    """Whether a URL names this machine by its loopback."""
    host = _host(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def kernel_tells() -> bool:
    """Whether this system tells who listens on a port."""
    return SOCKETS[0].exists()


def listener_is_mine(address: str) -> bool:
    """Whether someone listens on a loopback URL's port, and only this user; False if the kernel does not tell."""
    if not is_loopback(address):
        return False
    return _listeners(_port(address)) == {os.geteuid()}


def _listeners(port: int) -> set[int]:
    """The users who listen on a port, on whatever address."""
    users = set()
    for table in SOCKETS:
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    users.add(int(words[7]))
    return users


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _port(address: str) -> int:
    try:
        parts = urlsplit(address)
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return 0
