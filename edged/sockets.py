"""Listening sockets that outlive workers, and the lock that keeps a second daemon out of a state directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from edged.config import Address
from edged.shortpath import short_path

BACKLOG = 512
"""Connections that may wait while a worker restarts (the kernel caps it at net.core.somaxconn)."""
BIND_PATIENCE_S = 8.0
"""After a kill -9 the orphaned worker holds the port until the kernel's parent-death signal has ended it."""


class SocketError(RuntimeError):
    """The daemon cannot listen where it was told to; the message says why and what to do."""


class InUse(RuntimeError):
    """Another daemon already works in this state directory."""


def adopt(fds: list[int]) -> socket.socket:
    """Wrap the first socket that the service manager handed down. Raises SocketError if it does not listen."""
    taken = socket.socket(fileno=fds[0])
    if taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 1:
        raise SocketError("the socket that the service manager handed down does not listen; use ListenStream=")
    taken.setblocking(False)
    return taken


def listen_tcp(
    address: Address,
    patience_s: float = BIND_PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> socket.socket:
    """Bind and listen. Waits up to `patience_s` for a port that is in use. Raises SocketError."""
    deadline = clock() + patience_s
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and clock() < deadline:
                sleep(0.05)
                continue
            raise SocketError(_why_not(address, error)) from None
        else:
            return listener


def listen_unix(path: Path) -> socket.socket:
    """Listen on a unix socket with mode 0660. The caller holds the lock, so whatever has this name is a dead one's."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with short_path(path) as name:
            before = os.umask(0o117)
            try:
                listener.bind(name)
            finally:
                os.umask(before)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise SocketError(f"cannot listen on {path}: {error.strerror or error}") from None
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where a TCP socket really listens: the port that 0 became."""
    host, port = listener.getsockname()[:2]
    return Address(str(host), int(port))


def lock_state(path: Path, patience_s: float = 1.0) -> int:
    """Take the lock file and write our pid into it. Returns the descriptor, which must stay open. Raises InUse.

    The lock belongs to the process: it ends with it, however it ends.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            pid = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise InUse(
                f"another edged (process {pid}) already uses {path.parent.parent}; stop it first, "
                "or give this one a directory of its own with --state"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor


def _why_not(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {address}: another program uses this port; stop it or choose another address"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"cannot listen on {address}: ports below 1024 need a socket unit or a privileged user"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {address}: this machine has no such address"
    return f"cannot listen on {address}: {error.strerror or error}"
