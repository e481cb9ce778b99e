"""cloudd as a device in a federated job speaks to it: the routes of `edgekit.messages.federation` over mTLS.

Every request may be repeated with the same bytes, so a lost connection, a restarted cloudd and a busy one are the same
thing here: wait and ask again, up to `patience_s`. What cloudd has considered and refused is never asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec

from edged.link.backoff import Backoff
from edged.link.errors import LinkError, Unreachable
from edged.link.http import bounded, problem, sorted_errors
from edgekit.atomic import fsync_dir
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
_STALL_S = 60.0
_READ = 1 << 17

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

    async def upload(self, job: str, number: int, path: Path) -> None:
        """Bring the masked words, from where they are at cloudd already. OSError."""

    async def plain(self, job: str, number: int, sha256: str) -> None:
        """The upload is whole and is this device's contribution to a round without masks."""


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

    async def upload(self, job: str, number: int, path: Path) -> None:
        """See Cloud."""
        await self._upload_to(f"/{job}/rounds/{number}/vector", path)

    async def _upload_to(self, place: str, path: Path) -> None:
        size = _size(path)
        done = Uploaded(size=0, whole=size)
        if size > MAX_CHUNK:  # else it costs no more to send it again than to ask how much is there
            done = _decoded(await self._ask("GET", place), Uploaded)
        with path.open("rb") as file:
            while done.size < size:
                file.seek(done.size)
                chunk = file.read(min(MAX_CHUNK, size - done.size))
                before = done.size
                try:
                    done = _decoded(await self._ask("PUT", f"{place}?offset={before}", chunk), Uploaded)
                except Rejected:
                    done = _decoded(await self._ask("GET", place), Uploaded)
                    if done.size <= before:
                        raise
                    continue  # the part had come already, and only the answer was lost
                if done.whole != size or done.size > size:
                    raise Rejected("malformed", f"cloudd wants {done.whole} bytes; the vector has {size}")
                if done.size <= before:
                    raise Rejected("malformed", "cloudd does not keep what it is sent")

    async def plain(self, job: str, number: int, sha256: str) -> None:
        """See Cloud."""
        await self._ask("POST", f"/{job}/rounds/{number}/plain", msgspec.json.encode(PlainUpdate(sha256=sha256)))

    async def fetch(self, job: str, entry: FileEntry, path: Path, *, durable: bool = True) -> None:
        """See Cloud."""
        partial = path.with_name(f".{path.name}.part")
        await asyncio.to_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        deadline, backoff = time.monotonic() + self._patience, Backoff(0.2, 10.0, floor_s=0.05)
        while True:
            before = _size(partial)
            try:
                await self._continue(f"/{job}/files/{entry.sha256}", entry, partial)
                break
            except Unreachable:
                if _size(partial) > before:
                    deadline = time.monotonic() + self._patience
                elif time.monotonic() > deadline:
                    raise
                await asyncio.sleep(backoff.next_s())
        await asyncio.to_thread(_finish, partial, path, entry, durable)

    async def _continue(self, path: str, entry: FileEntry, partial: Path) -> None:
        start = min(_size(partial), entry.size)
        if start == entry.size > 0:
            return
        headers = {"Range": f"bytes={start}-", "If-Range": f'"{entry.sha256}"'} if start else {}
        timeout = aiohttp.ClientTimeout(total=None, connect=10.0, sock_connect=10.0, sock_read=_STALL_S)
        with sorted_errors(self._url):
            async with self._session.get(
                f"{self._url}/v1/federation/jobs{path}", headers=headers, timeout=timeout
            ) as response:
                if response.status == 206:
                    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                        raise Rejected("malformed", "cloudd sent another part of a file than was asked for")
                elif response.status == 200:
                    start = 0
                else:
                    raise _refused(self._url, response.status, await bounded(response, _READ))
                with partial.open("r+b" if start else "w+b") as file:
                    file.truncate(start)
                    file.seek(start)
                    async for chunk in response.content.iter_chunked(_READ):
                        start += len(chunk)
                        if start > entry.size:
                            raise Rejected("malformed", f"a file of the job is longer than its {entry.size} bytes")
                        file.write(chunk)
        if start < entry.size:
            raise Unreachable(f"the connection ended {entry.size - start} bytes before the end of a file")

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
        with sorted_errors(self._url):
            async with self._session.request(
                method,
                f"{self._url}/v1/federation/jobs{path}",
                data=body,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                data = await bounded(response, limit)
                if response.status in (200, 202, 204):
                    return response.status, data
                raise _refused(self._url, response.status, data)


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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _finish(partial: Path, path: Path, entry: FileEntry, durable: bool) -> None:
    """Check the hash and give the file its name. Raises Rejected: what was wrong is removed."""
    hasher: Any = hashlib.sha256()
    with partial.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
        if durable:
            os.fsync(file.fileno())
    if hasher.hexdigest() != entry.sha256 or partial.stat().st_size != entry.size:
        partial.unlink()
        raise Rejected("malformed", "a file of the job does not have the announced SHA-256; it was removed")
    partial.replace(path)
    if durable:
        fsync_dir(path.parent)
