"""Models that people bring, fetch and take away: `edged models add`, `pull` and `remove`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from edged.api import ApiError, Done
from edged.desired import DesiredStore
from edged.link import SyncError
from edged.models import ModelStore
from edged.standing import Standing
from edged.status.state import ModelState
from edgekit.packages import Package, PackageError, find, split_ref

Progress = Callable[[int, int], None]
"""Told the bytes that have come and the bytes in all."""


def used_models(standing: Standing, held: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """By name@version: the services that run a package, or whose learning may need it again (`held`)."""
    used = {ref: set(services) for ref, services in held.items()}
    for name in standing.entries:
        choice = standing.running(name)
        if choice is not None:
            for ref in filter(None, (choice.ref, choice.head)):
                used.setdefault(ref, set()).add(name)
    return {ref: sorted(services) for ref, services in used.items()}


class ModelDesk:
    """Changes what is installed. Use it on the supervisor's event loop."""

    def __init__(
        self,
        desired: DesiredStore,
        models: ModelStore,
        fetch: Callable[[str, Path, Progress], Awaitable[Package]],
        states: Callable[[], list[ModelState]],
        came: Callable[[], None],
    ) -> None:
        """`fetch` gets a model from cloudd, `states` tells who uses which, `came` is called after an installation."""
        self._desired, self._models, self._fetch = desired, models, fetch
        self._states, self._came = states, came

    async def add(self, path: str) -> str:
        """Install the package in a directory of this machine; its name@version. Raises ApiError."""
        source = Path(path)
        if not source.is_absolute():
            raise ApiError(400, "the path of a package must be absolute")
        try:
            ref = await asyncio.to_thread(self._models.add, source)
            await asyncio.to_thread(self._desired.forgive)
        except PackageError as error:
            raise ApiError(422, f"the package in {path} cannot be used: {error}") from None
        except OSError as error:
            raise ApiError(507, f"the package in {path} cannot be installed: {error}") from None
        self._came()
        return ref

    async def pull(self, ref: str, progress: Progress) -> str:
        """Fetch a model from cloudd; its name@version. Raises ApiError."""
        try:
            split_ref(ref)
            package = await self._fetch(ref, self._models.directory, progress)
        except PackageError as error:
            raise ApiError(400, str(error)) from None
        except SyncError as error:
            raise ApiError(502, str(error)) from None
        await asyncio.to_thread(self._models.refresh)
        self._came()
        return package.ref

    async def remove(self, ref: str) -> Done:
        """Remove an installed package that nothing runs. Raises ApiError."""
        try:
            full = find(ref, self._models.refs())
            state = next((one for one in self._states() if f"{one.name}@{one.version}" == full), None)
            if state is not None and state.used_by:
                raise ApiError(
                    409, f"the model {full} is used by {', '.join(state.used_by)}; remove or change that first"
                )
            if state is not None and state.served:
                raise ApiError(409, f"the model {full} is served; first: edged models unserve {full}")
            await asyncio.to_thread(self._models.remove, full or ref)
        except PackageError as error:
            raise ApiError(404, str(error)) from None
        except OSError as error:
            raise ApiError(507, f"the model {ref} cannot be removed: {error}") from None
        return Done(text=f"The model {full} is removed.")
