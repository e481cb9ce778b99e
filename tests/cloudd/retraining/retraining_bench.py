"""A device's request in tests: a small network, pictures of patterns, and cloudd's half on loopback.

Only TLS is missing, so a header names the device; tests/edged/train/test_train_cloud.py has the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
from aiohttp import web
from aiohttp.typedefs import Handler

from cloudd.retraining import routes
from cloudd.retraining.folders import REQUEST, WORK
from cloudd.retraining.order import WorkOrder
from cloudd.retraining.service import Retraining
from cloudd.web import DEVICE_ID, new_app
from edgekit.architectures import Spec, build, input_spec
from edgekit.autodiff.schedules import Schedule
from edgekit.messages import FileEntry
from edgekit.messages.retraining import MAX_CHUNK, Missing, RetrainRequest, RetrainState, Stored, TaughtPicture, job_of
from edgekit.training import EarlyStopping, Settings, write_model
from edgekit.vision.images import encode_png

LABELS = ("plain", "stripe", "bar")
SIDE = 16
SPEC = Spec(architecture="tiny_cnn", classes=len(LABELS), input_width=SIDE, input_height=SIDE, channels=1, width=0.25)


def png(label: int, number: int) -> bytes:
    """One noisy picture of its own."""
    rng = np.random.default_rng([label, number])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    phase = int(rng.integers(4))
    image = np.full((SIDE, SIDE), 90.0)
    if label:
        image += 70 * (((columns if label == 1 else rows) + phase) // 2 % 2)
    image += rng.normal(0, 10, image.shape)
    return encode_png(np.asarray(np.clip(np.rint(image), 0, 255), np.uint8))


class Asked:
    """What a device asks for, with its files: 14 pictures of each label, of which two choose."""

    def __init__(self, place: Path, spec: Spec = SPEC, pictures: int = 14, **changes: object) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        write_model(build(spec).model, place)
        self.files: dict[str, bytes] = {}
        network = []
        for name in ("model.onnx", "weights.safetensors"):
            data = (place / name).read_bytes()
            network.append(FileEntry(path=name, sha256=self._add(data), size=len(data)))
        shown = []
        for number in range(pictures):
            for label in range(len(LABELS)):
                data = png(label, number)
                shown.append(
                    TaughtPicture(sha256=self._add(data), size=len(data), label=label, chooses=number >= pictures - 2)
                )
        request = RetrainRequest(
            service="solder",
            base="patterns@1",
            base_digest="0" * 64,
            name="patterns.solder",
            version="1-1",
            dataset="1" * 64,
            labels=LABELS,
            input=input_spec(spec),
            image="image",
            logits="logits",
            network=tuple(network),
            pictures=tuple(shown),
            seed=3,
        )
        self._ask(msgspec.structs.replace(request, **changes))

    def replace(self, name: str, data: bytes) -> None:
        """Another file of the network under this name."""
        entry = FileEntry(path=name, sha256=self._add(data), size=len(data))
        network = tuple(entry if one.path == name else one for one in self.request.network)
        self._ask(msgspec.structs.replace(self.request, network=network))

    def _ask(self, request: RetrainRequest) -> None:
        self.request = request
        self.body = msgspec.json.encode(request)
        self.job = job_of(self.body)

    def _add(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.files[sha256] = data
        return sha256

    def lie(self, root: Path) -> WorkOrder:
        """As the daemon has it when everything has come."""
        folder, files = root / "job", root / "files"
        folder.mkdir(parents=True)
        files.mkdir()
        (folder / REQUEST).write_bytes(self.body)
        for sha256, data in self.files.items():
            (files / sha256).write_bytes(data)
        return WorkOrder(folder=str(folder), files=str(files), seconds=60.0)


def plan(order: WorkOrder, teacher: int, student: int, peak: float = 3e-3, batches: tuple[int, int] = (16, 32)) -> None:
    """Fix how long both trainings are, so that no clock has a say."""
    for name, epochs, batch in zip(("teacher", "student"), (teacher, student), batches, strict=True):
        folder = Path(order.folder) / WORK / name
        folder.mkdir(parents=True)
        settings = Settings(
            epochs=epochs,
            batch=batch,
            schedule=Schedule(peak=peak),
            early_stopping=EarlyStopping(patience=0),
            balance="root",
            checkpoint_seconds=0.0,
            seed=3,
        )
        (folder / "planned.json").write_bytes(msgspec.json.encode(settings))


@web.middleware
async def _named(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[DEVICE_ID] = request.headers["Device"]
    return await handler(request)


@contextlib.asynccontextmanager
async def site(folder: Path, hours: float = 1.0, wall: float = 1.8e9) -> AsyncIterator[str]:
    """cloudd's half with its files in `folder`; gives its address."""
    retraining = Retraining(folder, hours, wall=lambda: wall)
    await retraining.open()
    app = new_app(_named)
    app.add_routes(routes.routes(retraining))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await retraining.close()
        await runner.cleanup()


class Device:
    """Speaks to it."""

    def __init__(self, url: str, name: str = "DEVICE-A") -> None:
        self._url, self._name = f"{url}/v1/retraining", name

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One request: status and body."""
        async with (
            aiohttp.ClientSession(headers={"Device": self._name}) as session,
            session.request(method, f"{self._url}{path}", data=body) as reply,
        ):
            return reply.status, await reply.read()

    async def begin(self, asked: Asked) -> RetrainState:
        status, data = await self.ask("PUT", f"/{asked.job}", asked.body)
        assert status == 200, data
        return msgspec.json.decode(data, type=RetrainState)

    async def state(self, asked: Asked) -> RetrainState:
        status, data = await self.ask("GET", f"/{asked.job}")
        assert status == 200, data
        return msgspec.json.decode(data, type=RetrainState)

    async def missing(self, asked: Asked) -> Missing:
        status, data = await self.ask("GET", f"/{asked.job}/missing")
        assert status == 200, data
        return msgspec.json.decode(data, type=Missing)

    async def put(self, asked: Asked, sha256: str, offset: int, part: bytes) -> Stored:
        status, data = await self.ask("PUT", f"/{asked.job}/files/{sha256}?offset={offset}", part)
        assert status == 200, data
        return msgspec.json.decode(data, type=Stored)

    async def fill(self, asked: Asked, leave: int = 0) -> None:
        """Send what is missing, but for the last `leave` files."""
        files = (await self.missing(asked)).files
        for one in files[: len(files) - leave]:
            data, have = asked.files[one.sha256], one.have
            while have < len(data):
                have = (await self.put(asked, one.sha256, have, data[have : have + MAX_CHUNK])).have

    async def until_ended(self, asked: Asked, seconds: float = 60.0) -> RetrainState:
        """Ask until there is nothing more to wait for."""
        async with asyncio.timeout(seconds):
            while (state := await self.state(asked)).stage in ("receiving", "waiting", "training"):
                await asyncio.sleep(0.05)
        return state
