"""The process of a worker, started but not yet configured.

Light, so that `edged run` can start its first worker before it imports what the supervisor itself needs: both then
import at the same time, on two processors, and the first answer comes a third sooner.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.handover import pair


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker process that waits for its configuration, and our ends of its sockets."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    handed: socket.socket
    """Here come the idle connections that it gives away when it is drained."""
    send_fd: int
    receive_fd: int
    """The worker's own numbers of the sockets for the hand-over of connections; -1 for none."""

    def discard(self) -> None:
        """It is not wanted any more: end it."""
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.handed.close()


def worker_command(control_fd: int, http_fd: int) -> list[str]:
    """The command line of `edged serve`. -P keeps the working directory out of the module path."""
    return [sys.executable, "-P", "-m", "edged.serve", "--control-fd", str(control_fd), "--http-fd", str(http_fd)]


def worker_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The child's environment: nothing of the service manager's protocol, and this very installation of edged."""
    hidden = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    child = {name: value for name, value in environ.items() if name not in hidden}
    installation = str(Path(__file__).resolve().parent.parent)
    child["PYTHONPATH"] = os.pathsep.join([installation, *filter(None, [environ.get("PYTHONPATH", "")])])
    child["ORT_DISABLE_TELEMETRY"] = "1"
    # A heap for each thread keeps what it once needed: 11 MiB of a worker of 168. One for all is as quick here.
    child.setdefault("MALLOC_ARENA_MAX", "1")
    return child


def empty_directory(state_dir: Path) -> Path:
    """Where workers start: nothing that a hostile model names relative to it exists there. Raises OSError."""
    empty = state_dir / "run" / "empty"
    empty.mkdir(mode=0o500, parents=True, exist_ok=True)
    return empty


def spawn(
    http: socket.socket,
    directory: Path,
    command: Callable[[int, int], Sequence[str]] = worker_command,
    inherits: socket.socket | None = None,
) -> Spawned:
    """Start a worker in the existing, empty `directory`. Raises OSError.

    `http` is the listening inference socket. `inherits` is what brings the idle connections of the worker before; it
    stays open here.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        undo.enter_context(theirs)
        sending, handed = pair()
        undo.callback(handed.close)
        with sending:
            descriptors = [theirs.fileno(), http.fileno(), sending.fileno()]
            if inherits is not None:
                descriptors.append(inherits.fileno())
            process = subprocess.Popen(
                command(theirs.fileno(), http.fileno()),
                cwd=directory,
                env=worker_environment(),
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
            )
            spawned = Spawned(
                process, ours, handed, sending.fileno(), inherits.fileno() if inherits is not None else -1
            )
        undo.pop_all()
        theirs.close()
    return spawned
