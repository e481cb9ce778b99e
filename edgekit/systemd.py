"""The few lines of systemd's protocols that a daemon needs: readiness and watchdog messages, handed-down sockets.

Sources: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Without systemd every function does nothing and
says so.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import MutableMapping

_FIRST_FD = 3
_MAX_FDS = 64


def notify(message: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Send one state message (`READY=1`, `STATUS=...`, `WATCHDOG=1`, `STOPPING=1`; several are joined by newlines).

    Returns False if no service manager listens. A manager that went away is no reason for a daemon to fail, so a send
    error also returns False. A line break inside a text starts a new assignment: `status` takes care of that.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.connect(address)
            sender.send(message.encode())
    except OSError:
        return False
    return True


def status(text: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Show one sentence in `systemctl status`."""
    return notify("STATUS=" + " ".join(text.split()), environ)


def listen_fds(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[int]]:
    """Descriptors handed down by socket activation, by the name in the unit's FileDescriptorName=.

    Takes the variables out of the environment, so that a child never mistakes them for its own, and marks every
    descriptor close-on-exec. Sockets without a name are listed as "unknown", as systemd itself does.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, list[int]] = defaultdict(list)
    for index in range(min(int(count), _MAX_FDS)):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        found[names[index] if index < len(names) and names[index] else "unknown"].append(fd)
    return dict(found)


def watchdog_interval_s(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Seconds between two `WATCHDOG=1` messages (half of WatchdogSec=), or None if the manager watches nothing here."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdigit():
        return None
    return int(microseconds) / 2e6 or None
