"""The supervisor at work: the device, the local API and the page on given sockets, until a signal ends it.

READY is said once the local API answers, whatever the worker and the network do. Imports only the core: numpy,
onnxruntime and cv2 live in workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
import time
from socket import socket

import msgspec
from aiohttp import web

from edged import config, local_api, sockets
from edged.config import ConfigError, Flags, Settings
from edged.device import Device
from edged.link import LinkError
from edged.spawn import Spawned
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
_SHUTDOWN_S = 2.0


def run(settings: Settings, flags: Flags, inference: socket, page: socket, api: socket, first: Spawned) -> bool:
    """Work until SIGTERM or SIGINT; False, and a sentence in the log, if it cannot.

    `inference`, `page` and `api` are listening sockets, `first` is a worker that waits for its configuration.
    """
    try:
        asyncio.run(_serve(settings, flags, inference, page, api, first))
    except (StoreError, LinkError, IdentityError) as error:
        log.error("edged cannot start: %s", error)
        return False
    except (OSError, sqlite3.Error) as error:
        log.error("edged cannot work in %s: %s", settings.state_dir, error)
        return False
    return True


async def _serve(
    settings: Settings, flags: Flags, inference: socket, page: socket, api: socket, first: Spawned
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    page_address = sockets.address_of(page)
    addresses = Addresses(
        inference=str(sockets.address_of(inference)), page=str(page_address), api=str(settings.socket_path)
    )
    device = Device(settings, inference, addresses, first=first)
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
    """SIGHUP: services, models and `[dispatch]` are read again at once; the rest of edged.toml needs a restart."""
    systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        await device.reload()
        now = await asyncio.to_thread(config.load, flags)
        device.set_dispatch(now.dispatch)
        if msgspec.structs.replace(now, dispatch=settings.dispatch) != settings:
            text = f"{settings.config_path} has changed; restart edged to work with it."
            device.health.report("config", "warning", text)
        else:
            device.health.clear("config")
    except ConfigError as error:
        device.health.report("config", "error", f"The configuration cannot be used at the next start: {error}.")
    except (OSError, sqlite3.Error) as error:
        device.health.report("config", "error", f"Reloading failed: {error}.")
    systemd.notify("READY=1")
