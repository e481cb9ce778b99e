"""Federated jobs in tests: a small model, plants with rosters, cloudd's half on loopback, and devices that answer it.

The devices speak the real protocol with real keys; only TLS is missing, so a header names the device.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncIterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from cloudd.federation import routes
from cloudd.federation.definition import read
from cloudd.federation.preparing import prepare
from cloudd.federation.service import Federation, StartRequest
from cloudd.federation.store import FederationStore, JobRow
from cloudd.registry import Registry
from cloudd.storage import Blobs, Rows
from cloudd.storage.rows import sqlite_url
from cloudd.web import DEVICE_ID, new_app
from edgekit import faults, packages
from edgekit.architectures import Spec, build, input_spec
from edgekit.identity import generate_key
from edgekit.packages import Manifest, Package, Variant
from edgekit.secagg import signatures
from edgekit.secagg.roster import Roster, member, sign_roster
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, write_model

LABELS = ("good", "bad")


def small_package(folder: Path) -> Package:
    """A classifier of some hundred weights."""
    folder.mkdir(parents=True)
    spec = Spec(architecture="tiny_cnn", classes=2, input_width=32, input_height=32, channels=1, width=0.25, seed=1)
    write_model(build(spec).model, folder)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    manifest = Manifest(
        name="small", version="1", labels="labels.txt", input=input_spec(spec), variants=[Variant(file=MODEL_FILE)]
    )
    assert (folder / WEIGHTS_FILE).exists()
    return packages.seal_package(folder, manifest)


class Plant:
    """Devices with keys, and the roster that their plant signs."""

    def __init__(self, count: int, owner: str = "north") -> None:
        self.owner = owner
        self.key = generate_key()
        self.devices = [generate_key() for _ in range(count)]

    @property
    def public(self) -> str:
        """As a definition has it."""
        return signatures.point(self.key.public_key()).hex()

    def roster(self, path: Path, serial: int = 1, not_after: float = 4e9) -> Path:
        """The signed file."""
        members = tuple(member(one.public_key()) for one in self.devices)
        roster = Roster(plant=self.owner, serial=serial, not_after=not_after, members=members)
        path.write_bytes(sign_roster(roster, self.key))
        return path


def definition(plant: Plant | None, more: str = "", **changes: object) -> str:
    """A job as a person writes it."""
    keys: dict[str, object] = {
        "name": "job", "service": "solder", "model": "small@1", "rounds": 2, "least": 3, "most": 4,
        "secure": plant is not None, **changes,
    }  # fmt: skip
    lines = [f"{key} = {_toml(value)}" for key, value in keys.items()]
    if plant is not None:
        lines.append('rosters = ["x"]')
        lines += ["[plants]", f'{plant.owner} = "{plant.public}"']
    lines.append("[deadlines]\nsettle = 0.0\nkeys = 20.0\ntrain = 61.0\nunmask = 20.0\npatience = 0.0")
    return "\n".join(lines) + "\n" + (more or '[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n')


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


# --- cloudd's half ---------------------------------------------------------------------------------------------------


@web.middleware
async def _named(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[DEVICE_ID] = request.headers["Device"]
    return await handler(request)


@contextlib.asynccontextmanager
async def site(folder: Path, port: int = 0) -> AsyncIterator[tuple[Federation, str]]:
    """A federation with storage in `folder`, and its address."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = await Rows.open(sqlite_url(folder / "cloudd.db"))
    blobs = await Blobs.open(str(folder / "blobs"))
    store, registry = FederationStore(rows, blobs), Registry(rows, blobs, folder / "cache")
    federation = Federation(store, registry, folder / "federation", prepare=_prepared_here)
    await federation.open()
    app = new_app(_named)
    app.add_routes(routes.routes(federation))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await listener.start()
    place = runner.addresses[0]
    try:
        yield federation, f"http://127.0.0.1:{place[1]}"
    finally:
        await federation.close()
        await runner.cleanup()
        await rows.close()


def serve(folder: str, port: int, crash_at: str) -> None:
    """`site` as a process of its own, until SIGTERM; it kills itself at the crash point."""
    os.environ["EDGED_CRASH_AT"] = crash_at
    importlib.reload(faults)  # reads the environment anew, in the module that everybody has

    async def until_told() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with site(Path(folder), port):
            await stop.wait()

    asyncio.run(until_told())


class Killed:
    """Starts cloudd's half, and starts it again when it is killed."""

    def __init__(self, folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.support.federation"])
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.deaths = 0
        self._process: ForkServerProcess | None = None

    def start(self, crash_at: str = "") -> None:
        """Another process, which kills itself there."""
        self._process = self._context.Process(target=serve, args=(str(self._folder), self.port, crash_at))
        self._process.start()

    async def keep_up(self, points: tuple[str, ...]) -> None:
        """One process after the other, each of which dies at the next crash point, then one that does not."""
        self.start(points[0])
        while True:
            await asyncio.sleep(0.01)
            assert self._process is not None
            if self._process.exitcode is not None:
                assert self._process.exitcode == -signal.SIGKILL, f"it ended by itself before {points[self.deaths]}"
                self.deaths += 1
                self.start(points[self.deaths] if self.deaths < len(points) else "")

    @property
    def alive(self) -> bool:
        """Whether the last one that was started runs."""
        return self._process is not None and self._process.exitcode is None

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(10)


async def begin(federation: Federation, package: Package, text: str, rosters: list[Path]) -> JobRow:
    """Register the model and start the job."""
    if await federation.registry.resolve(package.ref) is None:
        await federation.registry.add(package.root)
    request = StartRequest(definition=text, rosters=[path.read_bytes() for path in rosters])
    return await federation.start(request)


async def _prepared_here(base: Path, text: str, folder: Path) -> int:
    """As cloudd's child does, without a process for each test."""
    return prepare(packages.open_package(base), *read(text), folder)
