"""The outputs of one worker: opened from the definitions of its services, closed together."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from edged.capture.outputs.base import Notify, Output
from edged.capture.outputs.files import FileOutput
from edged.capture.outputs.network import NetworkOutput
from edged.capture.outputs.queue import Queue
from edged.capture.outputs.sending import Sender
from edged.store import StoreError
from edgekit.outputs import FILES
from edgekit.outputs import Output as Definition
from edgekit.services import Service

log = logging.getLogger("edged.capture")

ORPHANED_S = 30 * 86_400.0
"""A queue that no service has used for so long belongs to an output that was removed."""


class Outputs:
    """Everything that the services of one worker write to. Use it on the event loop."""

    def __init__(self, directory: Path, device: str, notify: Notify, make_room: Callable[[], bool]) -> None:
        """`directory` keeps the queues. `make_room` frees disk space for them (see Database)."""
        self._directory, self._device, self._notify, self._make_room = directory, device, notify, make_room
        self._open: dict[str, Output] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def of(self, service: Service) -> dict[str, Output]:
        """The service's outputs by key. A folder without any gets a file: a decision must be kept before it moves."""
        definitions = list(service.outputs)
        if not definitions and service.source.kind == "folder":
            definitions.append(Definition(path=str(Path(service.source.path) / "decisions.jsonl")))
        outputs = [self._output(service.name, definition) for definition in definitions]
        return {output.key: output for output in outputs}

    async def close(self) -> None:
        """Close all of them; each takes about a second at most unless a disk hangs."""
        if self._open:
            await asyncio.gather(*(output.close() for output in self._open.values()))

    def start_sweep(self) -> None:
        """Begin to remove the queues that no service has used for ORPHANED_S; call it when every service is there."""
        self._sweeping = asyncio.create_task(asyncio.to_thread(self._sweep))

    def _sweep(self) -> None:
        try:
            for lock in self._directory.glob("*.lock"):
                if lock.stem not in self._open and time.time() - lock.stat().st_mtime > ORPHANED_S:
                    self._remove(lock)
        except (OSError, StoreError, sqlite3.Error) as error:
            log.warning("unused queues of outputs cannot be removed: %s", error)

    def _remove(self, lock: Path) -> None:
        database = lock.with_suffix(".db")
        queue = Queue(database, 1, 1, self._make_room)
        try:
            waiting = queue.waiting()
        finally:
            queue.close()
        for path in (database, database.with_name(f"{database.name}-wal"), database.with_name(f"{database.name}-shm")):
            path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        text = f"the queue {lock.stem}, unused for a month, was removed with {waiting} decisions that waited in it"
        self._notify("warning", f"output-orphaned:{lock.stem}", text, passing=True)

    def _output(self, service: str, definition: Definition) -> Output:
        """One writer a file, also where several services share it; one queue a service and receiver."""
        if definition.kind in FILES:
            if definition.path not in self._open:
                self._open[definition.path] = FileOutput(definition, self._notify)
            return self._open[definition.path]
        stem = queue_stem(service, definition)
        if stem not in self._open:
            self._open[stem] = NetworkOutput(
                service,
                receiver_name(definition),
                stem,
                definition,
                self._directory,
                self._sender(service, definition, stem),
                self._notify,
                self._make_room,
            )
        return self._open[stem]

    def _sender(self, service: str, definition: Definition, stem: str) -> Sender:
        # What a sender needs is imported with the first one: most workers have none, and start the sooner for it.
        if definition.kind == "webhook":
            from edged.capture.outputs.webhook import WebhookSender

            return WebhookSender(definition)
        from edged.capture.outputs.mqtt import MqttSender

        # 23 letters and digits are what every broker must take (MQTT 3.1.1, 3.1.3.1).
        digest = hashlib.sha256(f"{self._device} {stem}".encode()).hexdigest()
        return MqttSender(service, definition, f"edged{digest[:18]}")


def queue_stem(service: str, definition: Definition) -> str:
    """Names the queue: another destination is another queue, any other change keeps what waits."""
    digest = hashlib.sha256(f"{definition.url} {definition.topic}".encode()).hexdigest()
    return f"{service}.{definition.kind}.{digest[:12]}"


def receiver_name(definition: Definition) -> str:
    """What people call a receiver: its address without the query, where some put a token, and its topic."""
    parts = urlsplit(definition.url)
    address = f"{parts.scheme}://{parts.netloc}{parts.path}"
    if parts.query:
        address += f" ({hashlib.sha256(parts.query.encode()).hexdigest()[:4]})"
    return f"{address} {definition.topic}" if definition.kind == "mqtt" else address
