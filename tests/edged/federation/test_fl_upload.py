"""A vector on its way to cloudd: asked how much of it is there only where the answer may save something."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloudd.federation.service import Federation
from edged.federation import cloud
from edged.federation.cloud import HttpCloud
from edgekit.identity import generate_key
from edgekit.messages.federation import MAX_CHUNK, Invitation
from edgekit.secagg import fixedpoint, messages
from tests.support.federation import begin, definition, site, small_package
from tests.support.federation_devices import Device


class Upload:
    """An invited device with its vector in a file, and what it asks for from then on."""

    def __init__(
        self, federation: Federation, device: Device, turn: Invitation, session: aiohttp.ClientSession
    ) -> None:
        self.federation, self.device, self.number, self._session = federation, device, turn.number, session
        self.asked: list[str] = []
        self.sent = 0

    def prepare(self, path: Path, config: bytes) -> None:
        found = messages.from_cloud(config)
        assert isinstance(found, messages.RoundConfig)
        vector, weight = self.device.vector("learn")
        self.data = fixedpoint.encode(vector, weight, fixedpoint.Encoding(found), lambda count: bytes(count)).tobytes()
        path.write_bytes(self.data)
        self.path, self.sha256 = path, hashlib.sha256(self.data).hexdigest()

    async def go(self) -> list[str]:
        """Bring the vector; the requests that took."""
        self.asked.clear()
        client = HttpCloud(self._session, self.device.url, patience_s=5.0)
        await client.upload(self.device.job.id, self.number, self.path, self.sha256)
        return list(self.asked)

    @property
    def here(self) -> int:
        """Vectors that are in the sum."""
        return self.federation.runs[self.device.job.id].cohorts[self.number].delivered


@pytest.fixture
async def upload(tmp_path: Path) -> AsyncIterator[Upload]:
    package = small_package(tmp_path / "package")
    async with site(tmp_path / "cloudd") as (federation, url):
        row = await begin(federation, package, definition(None, least=2, most=2, rounds=1), [])
        keys: list[ec.EllipticCurvePrivateKey] = [generate_key(), generate_key()]
        traced = aiohttp.TraceConfig()
        async with Device(0, keys[0], url) as device, Device(1, keys[1], url) as other:
            for one in (device, other):
                await one.open(row.id, {})
            turn, _ = await asyncio.gather(device.next(), other.next())
            assert isinstance(turn, Invitation)

            async def started(_session: object, _context: SimpleNamespace, asked: object) -> None:
                found.asked.append(f"{asked.method} {asked.url.path.rpartition('/')[2]}")  # type: ignore[attr-defined]

            async def sent(_session: object, _context: SimpleNamespace, part: object) -> None:
                found.sent += len(part.chunk)  # type: ignore[attr-defined]

            traced.on_request_start.append(started)
            traced.on_request_chunk_sent.append(sent)
            async with aiohttp.ClientSession(headers={"Device": device.id}, trace_configs=[traced]) as session:
                found = Upload(federation, device, turn, session)
                found.prepare(tmp_path / "vector.bin", turn.config)
                yield found


async def test_a_vector_of_one_part_is_one_request_and_said_again_it_is_the_same_again(upload: Upload) -> None:
    """To send it anew costs no more than to ask, so a device that was killed in between does not ask either."""
    assert len(upload.data) < MAX_CHUNK
    assert await upload.go() == ["PUT vector"]
    assert upload.here == 1
    assert await upload.go() == ["PUT vector"]
    assert upload.here == 1


async def test_a_vector_of_many_parts_is_asked_for_first_and_goes_on_where_it_is(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = len(upload.data) // 4 + 1
    monkeypatch.setattr(cloud, "MAX_CHUNK", part)
    place = f"/jobs/{upload.device.job.id}/rounds/{upload.number}/vector?offset=0"
    status, _ = await upload.device.ask("PUT", place, upload.data[: part + 7])
    assert status == 200
    assert await upload.go() == ["GET vector", "PUT vector", "PUT vector", "PUT vector"]
    assert upload.here == 1 and upload.sent == len(upload.data) - part - 7


async def test_a_part_that_begins_at_the_wrong_place_is_asked_about(upload: Upload) -> None:
    """Something of the vector is there that this process did not know of."""
    place = f"/jobs/{upload.device.job.id}/rounds/{upload.number}/vector?offset=0"
    assert (await upload.device.ask("PUT", place, upload.data[:100]))[0] == 200
    assert await upload.go() == ["PUT vector", "GET vector", "PUT vector"]
    assert upload.here == 1
