"""A small plant for tests: packages, services, one inference socket and the workers started on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.models import make_package
from tests.support.workers import WorkerProcess, configuration, listening_socket

LABELS = ["dark", "dim", "bright"]


def definition(name: str, model: str = "brightness", **rest: Any) -> str:
    """A service definition; tables as dictionaries, `outputs` as a list of paths."""
    lines = [f'name = "{name}"', f'model = "{model}"']
    outputs = rest.pop("outputs", [])
    tables = {key: value for key, value in rest.items() if isinstance(value, dict)}
    lines += [f"{key} = {json.dumps(value)}" for key, value in rest.items() if key not in tables]
    for key, table in tables.items():
        lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    for path in outputs:
        lines += ["[[outputs]]", f'path = "{path}"']
    return "\n".join(lines)


class Plant:
    """A state directory, packages, a listening socket and the workers started on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.listener = listening_socket()
        self.workers: list[WorkerProcess] = []
        self.packages: dict[str, Path] = {}
        self.session = aiohttp.ClientSession()

    def package(self, name: str = "brightness", **options: Any) -> Path:
        directory = self.root / "models" / name
        make_package(directory, name, labels=LABELS, **options)
        self.packages[name] = directory
        return directory

    async def start(
        self, *services: str, ready: bool = True, environment: dict[str, str] | None = None, **changes: Any
    ) -> WorkerProcess:
        configure = configuration(self.state, list(services), self.packages, **changes)
        worker = await WorkerProcess.start(self.listener, configure, environment)
        self.workers.append(worker)
        if ready:
            await worker.until_ready()
        return worker

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}{path}"

    async def post(self, path: str, data: Any, **headers: str) -> tuple[int, dict[str, Any], Any]:
        async with self.session.post(self.url(path), data=data, headers=headers) as response:
            return response.status, await response.json(content_type=None), response.headers

    async def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        async with self.session.request(method, self.url(path)) as response:
            return response.status, await response.read()

    async def close(self) -> None:
        await self.session.close()
        for worker in self.workers:
            await worker.end()
        self.listener.close()
