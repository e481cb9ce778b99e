"""cloudd as a device in a federated job speaks to it: the routes of `edgekit.messages.federation` over mTLS.

Every request may be repeated with the same bytes, so a lost connection, a restarted cloudd and a busy one are the same
thing here: wait and ask again, up to `patience_s`. What cloudd has considered and refused is never asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
import msgspec

from edged.link.backoff import Backoff
from edged.link.download import download, size_of
from edged.link.errors import LinkError, Refused, Unreachable, WrongContent
from edged.link.http import bounded, problem, sorted_errors
from edgekit.messages import FileEntry
from edgekit.messages.federation import (
    MAX_CHUNK,
    WAIT_S,
    DeviceRefusal,
    FederatedJob,
    PlainUpdate,
    RoundProblem,
    Standing,
    Turn,
    Uploaded,
    decode_turn,
)
from edgekit.secagg.messages import MAX_MESSAGE

PATIENCE_S = 600.0
"""Longest time without any answer; then the process ends, and the supervisor begins it again when the link is up."""
_MAX_REPLY = 4 << 20
_REQUEST_S = WAIT_S + 35.0
_PIECE = 1 << 18
"""Bytes that are handed to TLS at once: with megabytes it copies its own buffers more than it encrypts."""

T = TypeVar("T")


class RoundOver(Exception):
    """The round is over for this device, void or closed without it; `next` says how it goes on."""


class Rejected(Exception):
    """cloudd refuses for good. `rule`: of `edgekit.secagg.errors.Rule`, or empty; `status`: HTTP's, 0 for none."""

    def __init__(self, rule: str, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.rule, self.status = rule, status


class Cloud(Protocol):
    """What a participant needs of cloudd. Raises Rejected, RoundOver in a round, and LinkError without an answer."""

    async def job(self, job: str) -> FederatedJob:
        """The job, as it was begun."""

    async def fetch(self, job: str, entry: FileEntry, path: Path, *, durable: bool = True) -> None:
        """A file of the job with the size and SHA-256 of its entry; goes on where an earlier try ended. OSError.

        `durable` False: it is used at once and may be gone after a power cut.
        """

    async def next(self, job: str, standing: Standing) -> Turn:
        """What to do now."""

    async def refuse(self, job: str, refusal: DeviceRefusal) -> None:
        """Why this device sits out. Never raises but for a cancellation: it is a courtesy."""

    async def step(self, job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        """Send a secagg message and wait for the next one; None where nothing follows."""

    async def upload(self, job: str, number: int, path: Path, plain: str = "") -> None:
        """Bring the masked words, from where they are at cloudd already. OSError.

        `plain`: their SHA-256, in a round without masks: with it they are this device's contribution.
        """


class HttpCloud:
    """See Cloud. `session` has the device's certificate; `url` is https://host:port."""

    def __init__(self, session: aiohttp.ClientSession, url: str, patience_s: float = PATIENCE_S) -> None:
        self._session, self._url, self._patience = session, url, patience_s

    async def job(self, job: str) -> FederatedJob:
        """See Cloud."""
        found = _decoded(await self._ask("GET", f"/{job}"), FederatedJob)
        if found.id != job:
            raise Rejected("binding", "cloudd answered with another job")
        return found

    async def next(self, job: str, standing: Standing) -> Turn:
        """See Cloud."""
        data = await self._ask("POST", f"/{job}/next", msgspec.json.encode(standing))
        try:
            return decode_turn(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("malformed", f"cloudd's answer cannot be read: {error}") from None

    async def refuse(self, job: str, refusal: DeviceRefusal) -> None:
        """See Cloud."""
        try:
            await self._once("POST", f"/{job}/refusal", msgspec.json.encode(refusal), timeout_s=10.0)
        except (LinkError, Rejected, RoundOver):
            return

    async def step(self, job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        """See Cloud."""
        path = f"/{job}/rounds/{number}" + (f"?sha256={sha256}" if sha256 else "")
        while True:
            status, data = await self._patiently("POST", path, message, MAX_MESSAGE)
            if status == 200:
                return data
            if status == 204:
                return None

    async def upload(self, job: str, number: int, path: Path, plain: str = "") -> None:
        """See Cloud."""
        here = f"/{job}/rounds/{number}"
        taken = await self._upload_to(f"{here}/vector", path, plain)
        if plain and not taken:  # all parts were there already, or cloudd is of an earlier release
            await self._ask("POST", f"{here}/plain", msgspec.json.encode(PlainUpdate(sha256=plain)))

    async def _upload_to(self, place: str, path: Path, plain: str = "") -> bool:
        size = size_of(path)
        done = Uploaded(size=0, whole=size)
        if size > MAX_CHUNK:  # else it costs no more to send it again than to ask how much is there
            done = _decoded(await self._ask("GET", place), Uploaded)
        with path.open("rb") as file:
            while done.size < size:
                file.seek(done.size)
                chunk = file.read(min(MAX_CHUNK, size - done.size))
                before = done.size
                said = f"&sha256={plain}" if plain and before + len(chunk) == size else ""
                try:
                    done = _decoded(await self._ask("PUT", f"{place}?offset={before}{said}", chunk), Uploaded)
                except Rejected:
                    done = _decoded(await self._ask("GET", place), Uploaded)
                    if done.size <= before:
                        raise
                    continue  # the part had come already, and only the answer was lost
                if done.whole != size or done.size > size:
                    raise Rejected("malformed", f"cloudd wants {done.whole} bytes; the vector has {size}")
                if done.size <= before:
                    raise Rejected("malformed", "cloudd does not keep what it is sent")
        return done.taken

    async def fetch(self, job: str, entry: FileEntry, path: Path, *, durable: bool = True) -> None:
        """See Cloud."""
        place = f"/v1/federation/jobs/{job}/files/{entry.sha256}"
        try:
            await download(self._session, self._url, place, entry, path, patience_s=self._patience, durable=durable)
        except WrongContent as error:
            raise Rejected("malformed", str(error)) from None
        except Refused as error:
            raise RoundOver() if error.status == 410 else Rejected("", str(error), error.status) from None

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        status, data = await self._patiently(method, path, body, _MAX_REPLY)
        if status not in (200, 204):
            raise Rejected("malformed", f"cloudd answered with HTTP status {status}")
        return data

    async def _patiently(self, method: str, path: str, body: bytes | None, limit: int) -> tuple[int, bytes]:
        """Ask until somebody answers."""
        deadline, backoff = time.monotonic() + self._patience, Backoff(0.2, 10.0, floor_s=0.05)
        while True:
            try:
                return await self._once(method, path, body, limit)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(backoff.next_s())

    async def _once(
        self, method: str, path: str, body: bytes | None, limit: int = _MAX_REPLY, timeout_s: float = _REQUEST_S
    ) -> tuple[int, bytes]:
        """One try. Raises Unreachable for what another try may help, RoundOver, Rejected."""
        headers = {} if body is None else {"Content-Length": str(len(body))}
        with sorted_errors(self._url):
            async with self._session.request(
                method,
                f"{self._url}/v1/federation/jobs{path}",
                data=body if body is None or len(body) <= _PIECE else _pieces(body),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                data = await bounded(response, limit)
                if response.status in (200, 202, 204):
                    return response.status, data
                raise _refused(self._url, response.status, data)


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    for start in range(0, len(body), _PIECE):
        yield memoryview(body)[start : start + _PIECE]


def _refused(url: str, status: int, data: bytes) -> Exception:
    """What a reply with an error is."""
    if status == 410:
        return RoundOver()
    error = problem(url, status, data)
    if isinstance(error, Unreachable):
        return error
    rule = ""
    if status == 409:
        try:
            rule = msgspec.json.decode(data, type=RoundProblem).rule[:40]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rule = ""
    return Rejected(rule, str(error), status)


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("malformed", f"cloudd's answer cannot be read: {error}") from None
