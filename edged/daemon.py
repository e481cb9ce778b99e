"""The supervisor process: opens the sockets, starts the device, answers the API and the page, feeds the watchdog.

Order matters. The lock comes first, then the sockets (so that a port in use is an error before anything is touched),
then the device; READY is said once the local API answers, whatever the worker and the network do. Imports only the
core: numpy, onnxruntime and cv2 live in workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import time
from socket import socket

from aiohttp import web

from edged import config, local_api, sockets
from edged.config import ConfigError, Flags, Settings
from edged.device import Device
from edged.link import LinkError
from edged.status import server as page_server
from edged.status.state import Addresses
from edged.store import StoreError
from edged.tokens import secret_token
from edged.watchdog import Watchdog
from edgekit import systemd
from edgekit.identity import IdentityError

log = logging.getLogger("edged")

RSS_BUDGET = 64 << 20
"""Bytes of resident memory that the idle supervisor may take. Measured in November 2026: 58 MiB."""
EXIT_TROUBLE = 1
_SHUTDOWN_S = 2.0


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
        asyncio.run(_serve(settings, flags, inference, page, api))
    except (sockets.SocketError, StoreError, LinkError, IdentityError) as error:
        log.error("edged cannot start: %s", error)
        return EXIT_TROUBLE
    except (OSError, sqlite3.Error) as error:
        log.error("edged cannot work in %s: %s", settings.state_dir, error)
        return EXIT_TROUBLE
    finally:
        os.close(lock)
    return 0


async def _serve(settings: Settings, flags: Flags, inference: socket, page: socket, api: socket) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    page_address = sockets.address_of(page)
    addresses = Addresses(
        inference=str(sockets.address_of(inference)), page=str(page_address), api=str(settings.socket_path)
    )
    device = Device(settings, inference, addresses)
    device.open()
    token = await asyncio.to_thread(secret_token, settings.state_dir / "page-token")
    page_app = page_server.build(device, token, page_address, settings.page_hosts)
    runners = [await _start_site(local_api.build(device), api), await _start_site(page_app, page)]
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(_reload(device, settings, flags))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    await device.start()
    systemd.notify("READY=1")
    systemd.status(f"inference on {addresses.inference}, page on http://{addresses.page}")
    log.info("edged is up: inference on http://%s, page on http://%s.", addresses.inference, addresses.page)
    watchdog = asyncio.create_task(Watchdog(settings.state_dir / "run" / "probe", device.health).run())
    await stop.wait()
    systemd.notify("STOPPING=1")
    log.info("edged ends: the worker finishes what it has begun.")
    watchdog.cancel()
    await device.stop()
    for runner in runners:
        await runner.cleanup()
    with contextlib.suppress(OSError):
        settings.socket_path.unlink()


async def _start_site(app: web.Application, listener: socket) -> web.AppRunner:
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=30.0, shutdown_timeout=_SHUTDOWN_S
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


async def _reload(device: Device, settings: Settings, flags: Flags) -> None:
    """SIGHUP: services and models are read again at once; what edged.toml says about sockets needs a restart."""
    systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        await device.reload()
        if await asyncio.to_thread(config.load, flags) != settings:
            text = f"{settings.config_path} has changed; restart edged to work with it."
            device.health.report("config", "warning", text)
        else:
            device.health.clear("config")
    except ConfigError as error:
        device.health.report("config", "error", f"The configuration cannot be used at the next start: {error}.")
    except (OSError, sqlite3.Error) as error:
        device.health.report("config", "error", f"Reloading failed: {error}.")
    systemd.notify("READY=1")


def _listener(handed: dict[str, list[int]], name: str, address: config.Address) -> socket:
    return sockets.adopt(handed[name]) if name in handed else sockets.listen_tcp(address)
