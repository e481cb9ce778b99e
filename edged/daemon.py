"""`edged run`, from the command line to the supervisor at work: configuration, lock, sockets, and the first worker.

Order matters. The lock comes first, then the sockets, so that a port in use is an error before anything is touched.
Then the first worker is spawned: it imports its libraries while this process imports those of the supervisor.
"""

from __future__ import annotations

import logging
import os
from socket import socket

from edged import config, sockets
from edged.config import ConfigError, Flags
from edged.spawn import empty_directory, spawn
from edgekit import systemd

log = logging.getLogger("edged")

EXIT_TROUBLE = 1


def run(flags: Flags) -> int:
    """Run the daemon until SIGTERM or SIGINT; the exit status. Prints why it cannot start as one sentence."""
    os.umask(0o077)
    try:
        settings = config.load(flags)
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (settings.state_dir / "run").mkdir(mode=0o700, exist_ok=True)
        settings.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = sockets.lock_state(settings.state_dir / "run" / "edged.lock")
    except (ConfigError, sockets.InUse) as error:
        log.error("edged cannot start: %s", error)
        return EXIT_TROUBLE
    except OSError as error:
        log.error("edged cannot start: %s: %s", error.filename or "its state directory", error.strerror or error)
        return EXIT_TROUBLE
    try:
        handed = systemd.listen_fds()
        inference = _listener(handed, "inference", settings.inference)
        page = _listener(handed, "page", settings.page)
        api = sockets.listen_unix(settings.socket_path)
        first = spawn(inference, empty_directory(settings.state_dir))

        from edged import supervisor  # only now: the worker's imports run beside these

        return 0 if supervisor.run(settings, flags, inference, page, api, first) else EXIT_TROUBLE
    except (sockets.SocketError, OSError) as error:
        log.error("edged cannot start: %s", error)
        return EXIT_TROUBLE
    finally:
        os.close(lock)


def _listener(handed: dict[str, list[int]], name: str, address: config.Address) -> socket:
    return sockets.adopt(handed[name]) if name in handed else sockets.listen_tcp(address)
