"""The device API of federated jobs; edgekit.messages.federation says what each route takes and gives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from cloudd.federation.cohort import Cohort, RoundOver
from cloudd.federation.errors import FederationError
from cloudd.federation.job import JobRun
from cloudd.federation.leading import Leading
from cloudd.federation.nodes import node_of
from cloudd.federation.plain import PlainCohort
from cloudd.federation.secure import SecureCohort
from cloudd.federation.service import Federation
from cloudd.federation.store import JobRow
from cloudd.registry.routes import send_blob
from cloudd.storage.blobs import is_sha256
from cloudd.web import DEVICE_ID, HttpProblem, json_response, read_body, read_json
from edgekit.identity import short_id
from edgekit.messages.federation import (
    MAX_CHUNK,
    MAX_STANDING,
    MAX_SUMS,
    WAIT_S,
    DeviceRefusal,
    JobList,
    Over,
    PlainUpdate,
    Publication,
    RoundProblem,
    Standing,
    Turn,
    Uploaded,
    encode_turn,
)
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import MAX_MESSAGE

_CHUNK_S = 120.0
_PART = 1 << 20
_STORAGE_RETRY_S = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(federation: Federation) -> list[web.RouteDef]:
    """Routes to mount on the device API, behind the middleware that sets DEVICE_ID."""
    found = _Routes(federation)
    return [
        web.get("/v1/federation/jobs", found.jobs),
        web.get("/v1/federation/jobs/{job}", found.job),
        web.get("/v1/federation/jobs/{job}/files/{sha256}", found.file),
        web.post("/v1/federation/jobs/{job}/next", _told(found.next)),
        web.post("/v1/federation/jobs/{job}/refusal", _told(found.refusal)),
        web.post(r"/v1/federation/jobs/{job}/rounds/{number:\d{1,9}}", _told(found.message)),
        web.put(r"/v1/federation/jobs/{job}/rounds/{number:\d{1,9}}/vector", _told(found.upload)),
        web.get(r"/v1/federation/jobs/{job}/rounds/{number:\d{1,9}}/vector", _told(found.uploaded)),
        web.post(r"/v1/federation/jobs/{job}/rounds/{number:\d{1,9}}/plain", _told(found.plain)),
        web.get("/v1/federation/jobs/{job}/lead", _told(found.leading.state)),
        web.post("/v1/federation/jobs/{job}/lead/sum", _told(found.leading.sum)),
        web.put("/v1/federation/jobs/{job}/lead/upper/{sha256}", _told(found.leading.upload)),
        web.get("/v1/federation/jobs/{job}/lead/upper/{sha256}", _told(found.leading.uploaded)),
        web.post("/v1/federation/jobs/{job}/lead/published", _told(found.leading.published)),
        web.post("/v1/federation/jobs/{job}/lead/over", _told(found.leading.over)),
    ]


def _told(handler: Handler) -> Handler:
    """What a round refuses becomes a status that a device understands."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return json_response(RoundProblem(error=str(refusal), rule=refusal.rule), 409)
        except FederationError as error:
            return json_response(RoundProblem(error=str(error), rule="order"), 409)
        except RoundOver as over:
            raise HttpProblem(410, str(over)) from None
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise HttpProblem(503, f"it cannot be kept at the moment: {error.strerror}", _STORAGE_RETRY_S) from None

    return handle


class _Routes:
    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self.leading = Leading(federation)

    async def jobs(self, request: web.Request) -> web.Response:
        node, known = node_of(request[DEVICE_ID]), request.query.get("known", "")
        until = asyncio.get_running_loop().time() + WAIT_S
        while True:
            listed = await self._federation.listed(node)
            ids = ",".join(sorted(one.id for one in listed))
            revision = hashlib.sha256(ids.encode()).hexdigest()[:16]
            left = until - asyncio.get_running_loop().time()
            if revision != known or left <= 0 or self._federation.stopping:
                return json_response(JobList(revision=revision, jobs=listed))
            await self._federation.changed.wait(left)

    async def job(self, request: web.Request) -> web.Response:
        return json_response((await self._row(request)).job)

    async def file(self, request: web.Request) -> web.StreamResponse:
        row, sha256 = await self._row(request), request.match_info["sha256"]
        run = self._federation.runs.get(row.id)
        size = run.size_of(sha256) if run is not None else None
        if size is None and is_sha256(sha256):
            size = await self._federation.store.file_size(row.id, sha256)
        if size is None:
            collected = await self.leading.file(request)
            if collected is not None:
                return collected
            raise HttpProblem(404, "this job has no file with this SHA-256")
        return await send_blob(request, self._federation.store.blobs, sha256, size)

    async def next(self, request: web.Request) -> web.Response:
        row = await self._row(request)
        standing = await read_json(request, Standing, MAX_STANDING)
        run = self._federation.runs.get(row.id)
        turn: Turn
        if run is not None:
            turn = await run.next(node_of(request[DEVICE_ID]), standing)
        else:
            turn = await self._ended(row, standing)
        return web.Response(body=encode_turn(turn), content_type="application/json")

    async def refusal(self, request: web.Request) -> web.Response:
        run = await self._run(request)
        refusal = await read_json(request, DeviceRefusal, MAX_STANDING)
        device = request[DEVICE_ID]
        await run.decline(node_of(device), refusal, short_id(device))
        return web.Response(status=204)

    async def message(self, request: web.Request) -> web.Response:
        cohort = await self._cohort(request)
        if not isinstance(cohort, SecureCohort):
            raise HttpProblem(404, "this round has no masks; upload the vector and say so at /plain")
        data = await read_body(request, MAX_MESSAGE)
        reply = await cohort.message(node_of(request[DEVICE_ID]), data, request.query.get("sha256", ""))
        if reply is None:
            return web.Response(status=202)
        if not reply:
            return web.Response(status=204)
        return web.Response(body=reply, content_type="application/octet-stream")

    async def upload(self, request: web.Request) -> web.Response:
        cohort, node = await self._cohort(request), node_of(request[DEVICE_ID])
        offset = request.query.get("offset", "")
        if not (offset.isascii() and offset.isdigit() and len(offset) <= 12):
            raise HttpProblem(400, "offset: the number of bytes before this part belongs there")
        if (request.content_length or 0) > MAX_CHUNK:
            raise HttpProblem(413, f"a part has at most {MAX_CHUNK} bytes")
        sha256 = request.query.get("sha256", "")
        if sha256 and not (isinstance(cohort, PlainCohort) and is_sha256(sha256)):
            raise HttpProblem(400, "sha256: the hash of a whole vector, in a round without masks, belongs there")
        place, whole = int(offset), cohort.vectors.size
        written: asyncio.Future[int] | None = None
        try:
            async with asyncio.timeout(_CHUNK_S):
                async for part in _parts(request):
                    if written is not None:
                        await written
                    written = asyncio.ensure_future(cohort.upload(node, place, part))  # while the next one comes
                    place += len(part)
                if written is not None:
                    await written
        finally:
            if written is not None:
                await asyncio.gather(written, return_exceptions=True)
        if sha256 and isinstance(cohort, PlainCohort):
            await cohort.deliver(node, sha256)
            return json_response(Uploaded(size=whole, whole=whole, taken=True))
        return json_response(Uploaded(size=cohort.uploaded(node), whole=whole))

    async def uploaded(self, request: web.Request) -> web.Response:
        cohort = await self._cohort(request)
        size = cohort.uploaded(node_of(request[DEVICE_ID]))
        return json_response(Uploaded(size=size, whole=cohort.vectors.size))

    async def plain(self, request: web.Request) -> web.Response:
        cohort = await self._cohort(request)
        if not isinstance(cohort, PlainCohort):
            raise HttpProblem(404, "this job is secure: its rounds take masked vectors only")
        update = await read_json(request, PlainUpdate, MAX_STANDING)
        await cohort.deliver(node_of(request[DEVICE_ID]), update.sha256)
        return web.Response(status=204)

    async def _ended(self, row: JobRow, standing: Standing) -> Turn:
        """What is left to do in a job that this process does not run."""
        store = self._federation.store
        row = await store.job(row.id) or row  # it may have ended a moment ago
        if standing.version < row.version:
            return Publication(rounds=tuple(await store.published(row.id, standing.version, MAX_SUMS)))
        if row.status == "running" or row.status == "packing":
            raise HttpProblem(503, "the job waits for room on the disk", _STORAGE_RETRY_S)
        return Over(outcome=row.status, reason=row.reason, version=row.version)

    async def _row(self, request: web.Request) -> JobRow:
        row = await self._federation.admitted(request.match_info["job"], node_of(request[DEVICE_ID]))
        if row is None:
            raise HttpProblem(404, "there is no such job for this device")
        return row

    async def _run(self, request: web.Request) -> JobRun:
        row = await self._row(request)
        run = self._federation.runs.get(row.id)
        if run is None and row.status in ("running", "packing"):
            raise HttpProblem(503, "the job waits for room on the disk", _STORAGE_RETRY_S)
        if run is None:
            raise HttpProblem(410, f"the job has ended ({row.status})")
        return run

    async def _cohort(self, request: web.Request) -> Cohort:
        return await (await self._run(request)).cohort(int(request.match_info["number"]))


async def _parts(request: web.Request) -> AsyncIterator[bytearray]:
    """The body in parts of about _PART. Raises HttpProblem for one of more than MAX_CHUNK."""
    received, part = 0, bytearray()
    async for chunk in request.content.iter_any():
        received += len(chunk)
        if received > MAX_CHUNK:
            raise HttpProblem(413, f"a part has at most {MAX_CHUNK} bytes")
        part += chunk
        if len(part) >= _PART:
            yield part
            part = bytearray()
    if part:
        yield part
