"""65 requests against a real worker: the answers are Triton's, or docs/protocol.md says what differs and why."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.plant import Plant
from tests.support.probes import MODEL, PROBES, Probe, make_tiny64

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
_ROW = re.compile(r"^\| `([^`]+)` \| (\d{3})([^|]*)\| (\d{3})([^|]*)\| ([^|]+) \|$", re.MULTILINE)


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    await plant.close()


@dataclass
class Reply:
    """Status, JSON text, bytes of tensors behind it, encoding."""

    status: int
    text: str
    tail: int
    encoding: str
    content_type: str


def ask(probe: Probe, port: int) -> Reply:
    """Send a probe on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(probe.method, probe.path, probe.body, probe.headers)
        response = connection.getresponse()
        data = response.read()
        encoding = response.getheader("Content-Encoding", "")
        if encoding:
            data = gzip.decompress(data) if encoding == "gzip" else zlib.decompress(data)
        length = int(response.getheader("Inference-Header-Content-Length", len(data)))
        kind = response.getheader("Content-Type", "")
        return Reply(response.status, data[:length].decode(), len(data) - length, encoding, kind)
    finally:
        connection.close()


def outline(value: Any) -> Any:
    """Keys and types; a list is what its first element is."""
    if isinstance(value, dict):
        return {key: outline(item) for key, item in value.items()}
    if isinstance(value, list):
        return [outline(value[0])] if value else []
    return type(value).__name__


def same(probe: Probe, reply: Reply) -> bool:
    if (reply.status, reply.tail, reply.encoding) != (probe.status, probe.tail, probe.encoding):
        return False
    if probe.structure:
        return bool(outline(json.loads(reply.text)) == outline(json.loads(probe.reply)))
    return reply.text == probe.reply


async def test_every_answer_is_tritons_or_a_documented_difference(plant: Plant) -> None:
    plant.packages[f"{MODEL}@1"] = make_tiny64(plant.root / "models" / MODEL)
    worker = await plant.start(models=[f"{MODEL}@1"])
    documented = {
        name: (int(theirs), int(ours)) for name, theirs, _, ours, _, _ in _ROW.findall(PAGE.read_text("utf-8"))
    }
    found: dict[str, tuple[int, int]] = {}
    replies = {}
    for probe in PROBES:
        reply = replies[probe.name] = await asyncio.to_thread(ask, probe, worker.port)
        # Whether a thread (or the loop) is free within a microsecond depends on the machine.
        if not same(probe, reply) or probe.name == "timeout 1us":
            found[probe.name] = (probe.status, reply.status if probe.name != "timeout 1us" else 503)
        if probe.name == "timeout 1us":
            assert reply.status in (200, 503)
        if reply.status != 200:
            assert isinstance(json.loads(reply.text)["error"], str), probe.name
            assert reply.content_type == "application/json"
    details = {name: replies[name] for name in found.keys() ^ documented.keys()}
    assert found == documented, details


def test_there_are_sixty_five_of_them() -> None:
    assert len(PROBES) == 65
    assert len({probe.name for probe in PROBES}) == 65


def test_every_difference_is_that_of_a_probe_and_has_a_reason() -> None:
    rows = _ROW.findall(PAGE.read_text("utf-8"))
    assert {name for name, *_ in rows} <= {probe.name for probe in PROBES}
    assert all(reason.strip() for *_, reason in rows)
