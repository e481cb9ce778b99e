"""Hostile bytes for running daemons, and what must hold after each of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from edgekit.envelope import seal
from edgekit.identity import client_context
from edgekit.messages import HardSample, Verdict
from tests.support.models import picture
from tests.support.stage import EASY, HARD, Plant

PNG = picture(HARD, seed=1)
JPEG = picture(HARD, kind=".jpg", seed=1)


@cache
def bomb() -> bytes:
    """A valid PNG of about 100 kB that says it has 30000x30000 pixels, and has them."""
    side = 30_000
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)  # one bit a pixel
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def start(plant: Plant) -> None:
    """Both daemons, the answer worker included: it loads its model with the first question."""
    plant.start()
    while plant.send().decided != "cloud":
        pass


@contextlib.contextmanager
def unharmed(plant: Plant) -> Iterator[None]:
    """The same processes before and after, and both daemons at work."""
    before = pids(plant)
    yield
    assert pids(plant) == before
    assert plant.send("solder", EASY).decided == "edge"
    assert plant.edge.status().cloud.up
    assert plant.cloud.status()["about"]["pid"] == plant.cloud.pid


def pids(plant: Plant) -> list[int]:
    """Supervisor, worker, cloudd, answer worker."""
    return [process.pid for daemon in (plant.edge, plant.cloud) for process in plant.processes(daemon)]


def error_of(status: int, body: bytes) -> str:
    """The sentence of a JSON error."""
    assert status >= 400, body[:300]
    document = json.loads(body)
    assert isinstance(document["error"], str) and document["error"]
    assert "Traceback" not in document["error"] and len(document["error"]) < 500
    return str(document["error"])


def exchanged(connection: http.client.HTTPConnection, method: str, route: str, body: bytes | None) -> tuple[int, bytes]:
    """Status and body. A server may answer before it has read all of a body that it does not want."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, route, body)
    reply = connection.getresponse()
    return reply.status, reply.read()


def hard_sample(picture: bytes = PNG, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "sample_id": "bad-input",
        "service": "solder",
        "answer_model": "large",
        "edge": Verdict(label="dark", score=0.5, margin=0.1, model="small@1"),
        "reason": "hard",
        "captured_at": 1.0,
    }
    return seal(HardSample(**(fields | changes)), picture)


def device_api(plant: Plant, path: str, body: bytes, known: bool = True) -> tuple[int, bytes]:
    """POST to cloudd's device API as the plant's device, or (not `known`) as a stranger; status and body."""
    identity = plant.edge.state_dir / "identity" / "current"
    mine = (identity / "certificate.pem", identity / "key.pem") if known else ()
    where = urlsplit(plant.cloud.url)
    context = client_context(identity / "authority.pem", *mine)
    connection = http.client.HTTPSConnection(str(where.hostname), where.port, context=context, timeout=60)
    try:
        return exchanged(connection, "POST", path, body)
    finally:
        connection.close()
