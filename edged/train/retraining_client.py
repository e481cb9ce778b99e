"""cloudd as a device speaks to it for the rung `cloud`: the routes of `edgekit.messages.retraining` over mTLS.

Light: a process that finds cloudd still at work ends again before it has imported what a training needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from edged.link.download import download
from edged.link.errors import LinkError, Refused, Unreachable, WrongContent
from edged.link.http import bounded, open_session, problem, sorted_errors
from edgekit.identity import IdentityError, client_context
from edgekit.messages import FileEntry
from edgekit.messages.learning import TrainOrder, TrainStopped
from edgekit.messages.retraining import MAX_STATE, Missing, RetrainState, Stored, job_of

FOLDER = "cloud"
"""Of this rung, below the job's scratch."""
REQUEST = "request.json"
FETCHED = "package"
FIRST_AGAIN_S, LAST_AGAIN_S = 10.0, 300.0
"""Between two questions whether cloudd has come to an end: a quarter of the time that it has had so far."""
_REQUEST_S = 60.0
_CLOSE_S = 5.0
"""A goodbye must not hold up whoever says it."""

T = TypeVar("T")


class Waiting(Exception):
    """There is nothing to do now; the same order goes on later. A clause."""


class CloudFailed(Exception):
    """cloudd, or what it sent, cannot be used for this job. A clause."""


class Client:
    """One connection. Methods raise Unreachable, Refused or WrongAuthority (all LinkErrors)."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def begin(self, body: bytes) -> RetrainState:
        """Ask for the job of this request, or find it again."""
        return await self._ask("PUT", f"/{job_of(body)}", RetrainState, body)

    async def state(self, job: str) -> RetrainState:
        """Where it stands."""
        return await self._ask("GET", f"/{job}", RetrainState)

    async def missing(self, job: str) -> Missing:
        """What cloudd does not have yet."""
        return await self._ask("GET", f"/{job}/missing", Missing)

    async def put(self, job: str, sha256: str, offset: int, part: bytes) -> Stored:
        """A part of a file, behind `offset` bytes that are there."""
        return await self._ask("PUT", f"/{job}/files/{sha256}?offset={offset}", Stored, part)

    async def close(self, job: str, forget: bool = False) -> None:
        """The job is over for this device. `forget`: nothing of it is to stay at cloudd, for later jobs neither."""
        await self._once("DELETE", f"/{job}{'?forget=1' if forget else ''}", None)

    async def fetch(self, job: str, entry: FileEntry, path: Path) -> None:
        """A file of the candidate; goes on behind what an earlier try has left. Raises CloudFailed, OSError, too."""
        try:
            await download(
                self._session, self._url, f"/v1/retraining/{job}/results/{entry.sha256}", entry, path, patience_s=0
            )
        except WrongContent as error:
            raise CloudFailed(str(error)) from None

    async def _ask(self, method: str, path: str, reply: type[T], body: bytes | None = None) -> T:
        data = await self._once(method, path, body)
        try:
            return msgspec.json.decode(data, type=reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unreachable(f"{self._url} does not answer like a cloudd ({error})") from None

    async def _once(self, method: str, path: str, body: bytes | None) -> bytes:
        with sorted_errors(self._url):
            async with self._session.request(
                method,
                f"{self._url}/v1/retraining{path}",
                data=body,
                timeout=aiohttp.ClientTimeout(total=_REQUEST_S),
            ) as response:
                data = await bounded(response, MAX_STATE)
                if response.status in (200, 204):
                    return data
                raise problem(self._url, response.status, data)


@asynccontextmanager
async def connected(url: str, directory: str) -> AsyncIterator[Client]:
    """A client with this device's certificate, which lies in `directory`. Raises Waiting where that cannot be used."""
    if not directory:
        raise Waiting("this device has joined no cloudd")
    identity = Path(directory)
    try:
        context = client_context(
            identity / "authority.pem", identity / "certificate.pem", identity / "key.pem", time.time()
        )
    except (IdentityError, OSError) as error:
        raise Waiting(f"the device's certificate cannot be used now: {error}") from None
    async with open_session(context) as session:
        yield Client(session, url)


def waits(order: TrainOrder) -> TrainStopped | None:
    """Whether cloudd is still at work on this job; None where there is something to do here, or to find out."""
    folder = Path(order.scratch) / FOLDER
    if (folder / FETCHED).exists():
        return None
    try:
        job = job_of((folder / REQUEST).read_bytes())
        state = asyncio.run(_with(order, lambda client: client.state(job)))
    except (OSError, Refused):
        return None  # nothing was asked for yet, or cloudd does not know the job any more
    except LinkError as error:
        return waiting(order, f"cloudd cannot be reached: {error}")
    except Waiting as error:
        return waiting(order, str(error))
    return waiting(order, at_work(state)) if state.stage in ("waiting", "training") else None


def waiting(order: TrainOrder, reason: str) -> TrainStopped:
    """The last word of a process for which there is nothing to do now."""
    try:
        age = time.time() - (Path(order.scratch) / FOLDER / REQUEST).stat().st_mtime
    except OSError:
        age = 0.0
    again = min(max(FIRST_AGAIN_S, age / 4), LAST_AGAIN_S)
    return TrainStopped(kind="waiting", reason=reason[:1000].rstrip("."), resumable=True, again_s=again)


def at_work(state: RetrainState) -> str:
    """A clause about a job that cloudd has."""
    share = f" ({state.done} of {state.total})" if state.total else ""
    return f"cloudd {state.text or 'works on it'}{share}"


def over(order: TrainOrder) -> None:
    """Tell cloudd that the job is over here."""
    asyncio.run(close_job(Path(order.scratch), order.url, order.identity))


async def close_job(scratch: Path, url: str, identity: str, forget: bool = False) -> None:
    """Tell cloudd that the job with this scratch folder is over; a courtesy, since it forgets in time by itself."""
    with suppress(OSError, LinkError, Waiting, TimeoutError):
        job = job_of((scratch / FOLDER / REQUEST).read_bytes())
        async with asyncio.timeout(_CLOSE_S), connected(url, identity) as client:
            await client.close(job, forget)


async def _with(order: TrainOrder, ask: Callable[[Client], Awaitable[T]]) -> T:
    async with connected(order.url, order.identity) as client:
        return await ask(client)
