"""The cloudd process: opens storage, authority and sockets, serves until it is told to stop, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cloudd import admin_api, config
from cloudd.answers import routes as answer_routes
from cloudd.answers.pool import AnswerPool, PoolSettings
from cloudd.answers.service import Answers
from cloudd.answers.store import AnswerStore
from cloudd.config import ConfigError, Settings
from cloudd.dashboard import server as dashboard
from cloudd.devices import enrol
from cloudd.devices.access import require_device
from cloudd.devices.advertise import Advertiser
from cloudd.devices.control import ControlHub
from cloudd.devices.fleet import Fleet
from cloudd.devices.invites import Invites
from cloudd.devices.server_identity import ServerIdentity, host_names, reachable_address
from cloudd.federation import routes as federation_routes
from cloudd.federation.service import Federation
from cloudd.federation.store import FederationStore
from cloudd.operations import About, Operations
from cloudd.registry import Registry
from cloudd.registry import routes as registry_routes
from cloudd.retraining import routes as retraining_routes
from cloudd.retraining.service import Retraining
from cloudd.storage import Blobs, Rows, StorageError, references
from cloudd.storage.rows import sqlite_url
from cloudd.web import Listener, listen_tcp, listen_unix, new_app
from edgekit import atomic, packages, systemd
from edgekit.identity import Authority, IdentityError
from edgekit.text import printable
from edgekit.webguard import LOOPBACK_HOSTS, PageGuard, TryLimiter, new_page_token

log = logging.getLogger("cloudd")

_UPKEEP_S = 3600.0
_DESCRIPTORS = 16_384


def run(settings: Settings, state: Path, *, verbose: bool = False, json_ready: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status. Prints the addresses once everything listens.

    Raises ConfigError or OSError if it cannot start.
    """
    _log_to_stderr(verbose)
    os.umask(0o077)
    _allow_many_files()
    state = state.absolute()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(state):
        atomic.sweep(state, state / "authority")
        try:
            asyncio.run(_until_told(settings, state, _announce_json if json_ready else _announce))
        except (StorageError, IdentityError) as error:
            raise ConfigError(str(error)) from None
    return 0


def _allow_many_files() -> None:
    """The usual soft limit of 1024 descriptors is less than the connections that the listeners admit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _until_told(settings: Settings, state: Path, announce: Callable[[About], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, state, announce, stop)


async def serve(settings: Settings, state: Path, announce: Callable[[About], None], stop: asyncio.Event) -> None:
    """Everything of one cloudd, from open files to closed ones. `announce` is called when all sockets listen.

    Raises StorageError, IdentityError, ConfigError or OSError if it cannot start.
    """
    async with contextlib.AsyncExitStack() as stack:
        rows = await Rows.open(settings.database or sqlite_url(state / "cloudd.db"))
        stack.push_async_callback(rows.close)
        blobs = await Blobs.open(settings.blobs or str(state / "blobs"))
        await references.sweep(rows, blobs)
        cache = state / "cache" / "models"
        await asyncio.to_thread(packages.sweep, cache)
        registry = Registry(rows, blobs, cache)
        authority = Authority.open(state / "authority", settings.name, time.time())
        fleet, invites = Fleet(rows), Invites(rows, authority.fingerprint)
        hub = ControlHub(fleet, settings.name, settings.heartbeat_s)
        identity = ServerIdentity(state / "authority", authority)
        identity.refresh(host_names(settings.names), time.time())
        tls = identity.context()

        store = AnswerStore(rows, blobs)
        pool = AnswerPool(state / "run" / "empty", PoolSettings(workers=settings.answer_workers))
        answers = Answers(registry, pool, store, wanted=fleet.answer_models)
        await pool.start()
        stack.push_async_callback(answers.close)
        stack.push_async_callback(pool.stop)
        answers.start()

        federation = Federation(FederationStore(rows, blobs), registry, state / "federation")
        await federation.open()
        stack.push_async_callback(federation.close)

        retraining = Retraining(state / "retraining", settings.retraining_hours)
        await retraining.open(one.id for one in await fleet.all() if one.revoked_at is not None)
        stack.push_async_callback(retraining.close)

        inherited = systemd.listen_fds()
        device_socket = _tcp(inherited.get("device"), settings.listen, "listen")
        dashboard_socket = _tcp(inherited.get("dashboard"), settings.dashboard, "dashboard")
        admin_socket = _unix(inherited.get("admin"), config.runtime_dir(state))
        about = _about(settings, state, authority, device_socket, dashboard_socket)
        operations = Operations(
            about, fleet, invites, hub, registry, store, pool.load, on_model=answers.added, retraining=retraining
        )

        device_app = new_app(require_device(fleet))
        device_app.add_routes(enrol.routes(authority, invites, fleet, settings.name, TryLimiter()))
        device_app.add_routes(hub.routes())
        device_app.add_routes(registry_routes.routes(registry, blobs))
        device_app.add_routes(answer_routes.routes(answers))
        device_app.add_routes(federation_routes.routes(federation))
        device_app.add_routes(retraining_routes.routes(retraining))
        guard = PageGuard(page_token(state), "cloudd-session", [*LOOPBACK_HOSTS, dashboard_socket.getsockname()[0]])
        listeners = [
            Listener(admin_api.application(operations, federation), admin_socket),
            Listener(dashboard.application(operations, guard, federation), dashboard_socket, total=256),
            Listener(device_app, device_socket, tls),
        ]
        for listener in listeners:
            await listener.start()
            stack.push_async_callback(listener.stop)
        stack.push_async_callback(hub.stop)  # before its listener, which waits for open requests
        stack.push_async_callback(federation.close)  # likewise

        background = [_upkeep(identity, tls, settings), _watchdog()]
        if settings.advertise:
            background.append(_advertiser(settings.name, authority, device_socket).run())
        for work in background:
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        announce(about)
        systemd.notify(f"READY=1\nSTATUS=device API {about.device_url}, dashboard {about.dashboard_url}")
        await stop.wait()
        log.info("stopping")
        systemd.notify("STOPPING=1")


async def _upkeep(identity: ServerIdentity, tls: ssl.SSLContext, settings: Settings) -> None:
    """Once an hour: a new server certificate if the host's addresses changed or the present one is old."""
    while True:
        await asyncio.sleep(_UPKEEP_S)
        try:
            if identity.refresh(host_names(settings.names), time.time()):
                identity.reload(tls)
        except Exception:  # one bad hour must not end the renewal for good
            log.exception("the server certificate could not be renewed; the present one stays in use")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _advertiser(name: str, authority: Authority, device: socket.socket) -> Advertiser:
    """Announces what devices can reach: every address, or only the one that the device API listens on."""
    host, port = device.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        return Advertiser(name, port, authority.fingerprint)
    return Advertiser(name, port, authority.fingerprint, lambda: [host], [host])


async def _watchdog() -> None:
    """Tell the service manager that the event loop still turns."""
    interval = systemd.watchdog_interval_s()
    while interval is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def page_token(state: Path) -> str:
    """The page token of a state directory, made at the first call. Raises OSError."""
    path = state / "page-token"
    with contextlib.suppress(FileNotFoundError):
        token = path.read_text("ascii").strip()
        if len(token) >= 32:
            return token
    token = new_page_token()
    atomic.write_file(path, token.encode() + b"\n", 0o600)
    return token


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Hold the state directory's lock. Raises ConfigError if another process has it."""
    with (state / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(20).strip() or "unknown"
            raise ConfigError(
                f"another cloudd (process {owner}) uses {state}; stop it or choose another --state"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _tcp(inherited: list[int] | None, address: str, key: str) -> socket.socket:
    if inherited:
        return _adopt(inherited)
    return listen_tcp(*config.split_address(address, key))


def _unix(inherited: list[int] | None, directory: Path) -> socket.socket:
    if inherited:
        return _adopt(inherited)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return listen_unix(directory / config.SOCKET_NAME)


def _adopt(descriptors: list[int]) -> socket.socket:
    sock = socket.socket(fileno=descriptors[0])
    sock.setblocking(False)
    return sock


def _about(settings: Settings, state: Path, authority: Authority, device: socket.socket, page: socket.socket) -> About:
    host, port = device.getsockname()[:2]
    reachable = reachable_address(host)
    page_host, page_port = page.getsockname()[:2]
    return About(
        name=settings.name,
        pid=os.getpid(),
        started_at=time.time(),
        state_dir=str(state),
        device_url=f"https://{_bracketed(reachable)}:{port}",
        dashboard_url=f"http://{_bracketed(page_host)}:{page_port}/",
        fingerprint=authority.fingerprint,
        advertised=settings.advertise,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _announce(about: About) -> None:
    print(
        f"cloudd {about.version} is ready as {about.name!r}\n"
        f"  device API  {about.device_url}\n"
        f"  dashboard   {about.dashboard_url}\n"
        f"  next        cloudd invite --state {about.state_dir}",
        flush=True,
    )


def _announce_json(about: About) -> None:
    print(msgspec.json.encode(about).decode(), flush=True)


class _OneLine(logging.Formatter):
    """Messages quote devices and strangers: a line break in one must not look like another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _log_to_stderr(verbose: bool) -> None:
    under_journal = "JOURNAL_STREAM" in os.environ  # it keeps the time itself
    layout = "%(name)s: %(message)s" if under_journal else "%(asctime)s %(levelname).1s %(name)s: %(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(layout))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    for chatty in ("aiosqlite", "alembic", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("zeroconf").setLevel(
        logging.ERROR
    )  # it warns, with a stack trace, of every interface without IPv6
