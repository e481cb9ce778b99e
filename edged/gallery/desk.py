"""The supervisor's side: who is enrolled, forgetting somebody, passing pictures on to the worker that embeds them.

What only a device with a gallery needs is imported when it is needed, because the supervisor's memory is counted.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from edged.api import ApiError, Done, Problem
from edged.gallery.records import Enrolled, EnrolReply, GalleryInfo, Identity, counted
from edged.store import StoreError

if TYPE_CHECKING:
    from edged.gallery.store import GalleryStore

T = TypeVar("T")

TIMEOUT_S = 30.0
MAX_REPLY = 1 << 16
_ANY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - where to connect to a socket that listens everywhere


class GalleryDesk:
    """Belongs to one event loop. Methods raise ApiError."""

    def __init__(
        self,
        state_dir: Path,
        device_id: Callable[[], str],
        task: Callable[[str], str | None],
        sentence: Callable[[str], str],
        worker: Callable[[], tuple[str, str]],
    ) -> None:
        """`task` of a wanted service, None if there is none; `sentence`: what the running service says of its gallery.

        `worker`: the inference address (host:port) and the management token.
        """
        self._state_dir, self._device_id = state_dir, device_id
        self._task, self._sentence, self._worker = task, sentence, worker
        self._changing = asyncio.Lock()

    async def show(self, service: str) -> GalleryInfo:
        """Who is enrolled."""
        self._known(service)
        none: tuple[dict[str, Enrolled], list[str]] = ({}, [])
        rows, closed = await self._do(lambda store: store.all(service), none)
        if self._task(service) is None and not rows and not closed:
            raise ApiError(404, f"there is no service {service}, and no gallery of one that was removed")
        people: dict[str, list[Enrolled]] = {}
        for row in rows.values():
            people.setdefault(row.identity, []).append(row)
        return GalleryInfo(
            service=service,
            identities=[_identity(name, mine) for name, mine in sorted(people.items()) if name],
            strangers=len(people.get("", ())),
            unreadable=len(closed),
            sentence=self._sentence(service),
        )

    async def enrol(self, service: str, identity: str, by: str, force: bool, picture: bytes) -> EnrolReply:
        """Have the worker enrol a picture; "" for a stranger's."""
        self._known(service)
        if self._task(service) is None:
            raise ApiError(404, f"there is no service {service}; add it first: edged services add")
        address, token = self._worker()
        host, _, port = address.rpartition(":")
        query = urlencode({"identity": identity, "by": by, "force": "1" if force else ""})
        url = f"http://{_ANY.get(host, host)}:{port}/v1/services/{quote(service, safe='')}/gallery?{query}"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False) as session,
                session.post(url, data=picture, headers={"Edged-Management": token}, allow_redirects=False) as response,
            ):
                body = await response.content.read(MAX_REPLY)
                if response.status != 200:
                    raise ApiError(response.status if response.status < 500 else 503, _reason(body))
                return msgspec.json.decode(body, type=EnrolReply)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:
            text = f"the worker cannot enrol the picture now ({type(error).__name__}); see edged status"
            raise ApiError(503, text) from None

    async def remove(self, service: str, identity: str) -> Done:
        """Forget an identity for ever."""
        removed = await self._forget(service, lambda row: row.identity == identity and bool(identity))
        if not removed:
            raise ApiError(404, f"{identity} is not enrolled in {service}")
        return Done(text=f"{identity} is forgotten, with {counted(removed, 'picture')}.")

    async def remove_strangers(self, service: str) -> Done:
        """Forget the pictures of strangers."""
        removed = await self._forget(service, lambda row: not row.identity)
        return Done(text=f"{counted(removed, 'picture')} of strangers {'is' if removed == 1 else 'are'} forgotten.")

    async def remove_unreadable(self, service: str) -> Done:
        """Forget what does not open."""

        def work(store: GalleryStore) -> int:
            return store.remove(service, store.all(service)[1])

        self._known(service)
        async with self._changing:
            removed = await self._do(work, 0)
        return Done(
            text=f"{counted(removed, 'picture')} that cannot be read {'is' if removed == 1 else 'are'} forgotten."
        )

    async def clear(self, service: str) -> Done:
        """Forget everybody."""
        self._known(service)
        async with self._changing:
            removed = await self._do(lambda store: store.clear(service), 0)
        return Done(text=f"Everybody in the gallery of {service} is forgotten, with {counted(removed, 'picture')}.")

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _forget(self, service: str, which: Callable[[Enrolled], bool]) -> int:
        def work(store: GalleryStore) -> int:
            rows, _ = store.all(service)
            return store.remove(service, [id for id, row in rows.items() if which(row)])

        self._known(service)
        async with self._changing:
            return await self._do(work, 0)

    def _known(self, service: str) -> None:
        """Raises ApiError for a service of another task; one that was removed may still have a gallery."""
        task = self._task(service)
        if task not in (None, "embedding"):
            raise ApiError(409, f'{service} has the task "{task}" and no gallery; task = "embedding" has one')

    async def _do(self, work: Callable[[GalleryStore], T], none: T) -> T:
        """In a thread, with the store open for so long; `none` if there is no store yet."""
        from edged.collab.sealing import SealError
        from edged.gallery.store import GalleryStore, path_in

        def open_and_work() -> T:
            if not path_in(self._state_dir).exists():
                return none
            store = GalleryStore.open(self._state_dir, self._device_id())
            try:
                return work(store)
            finally:
                store.close()

        try:
            return await asyncio.to_thread(open_and_work)
        except (SealError, StoreError, OSError, sqlite3.Error) as error:
            raise ApiError(503, f"the gallery cannot be used: {error}") from None


def _identity(name: str, rows: list[Enrolled]) -> Identity:
    newest = max(rows, key=lambda row: row.at)
    models = list(dict.fromkeys(row.model.partition(" ")[0] for row in rows))
    return Identity(name=name, pictures=len(rows), at=newest.at, by=newest.by, models=models)


def _reason(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=Problem).error[:500]
    except msgspec.MsgspecError:
        return "the worker did not enrol the picture and gave no reason; see edged status"
