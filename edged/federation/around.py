"""What federated learning needs of the rest of the supervisor."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edged.api import ApiError
from edged.federation.child import federation_command
from edged.federation.front import Subject
from edged.federation.order import FederationOrder
from edged.federation.settings import Federation
from edgekit.identity import Identity
from edgekit.learning.budget import Budget
from edgekit.messages import Level, Link
from edgekit.messages.learning import TrainDone

LOOK_S = 5.0


class Reserved(Protocol):
    """What a candidate must be called, and what decides now; `edged.learning.parts.Reserved`."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def base_ref(self) -> str: ...
    @property
    def base(self) -> Path: ...


class Learning(Protocol):
    """What is needed of learning. Raises ApiError."""

    async def reserve(self, service: str) -> Reserved: ...
    async def offer(self, service: str, base_ref: str, done: TrainDone) -> None: ...


class Linked(Protocol):
    """What is needed of the link."""

    @property
    def link(self) -> Link: ...
    @property
    def identity(self) -> Identity | None: ...
    @property
    def device_id(self) -> str: ...


@dataclass(frozen=True)
class Around:
    """What the desk needs of the rest of the supervisor; everything is asked in the event loop."""

    state_dir: Path
    empty: Path
    """Where child processes run: nothing that a hostile model names relative to it exists there."""
    policy: Federation
    link: Linked
    subject: Callable[[str], Subject | None]
    labelled: Callable[[str], Awaitable[int]]
    """Labelled samples of a service."""
    forget: Callable[[str], Awaitable[object]]
    """Delete a dataset version; may raise ApiError."""
    learning: Learning
    report: Callable[[str, Level, str], None]
    """Health: (code, level, text)."""
    health: Callable[[], Level] = lambda: "ok"
    """The worst thing that is wrong now."""
    threads: int = 1
    budget: Budget = field(default_factory=lambda: Budget(min_free_memory=128 << 20))
    command: Callable[[], Sequence[str]] = federation_command
    wall: Callable[[], float] = time.time
    look_s: float = LOOK_S

    def order(self, job: str, subject: Subject) -> FederationOrder:
        """What a child process is told that takes part in a job. Raises ApiError."""
        link, identity = self.link.link, self.link.identity
        if identity is None:
            raise ApiError(409, "this device has joined no cloudd")
        return FederationOrder(
            state_dir=str(self.state_dir),
            device_id=self.link.device_id,
            identity=str(identity.directory),
            url=link.url,
            job=job,
            service=subject.definition,
            base=str(subject.package),
            policy=self.policy,
            budget=self.budget,
            threads=self.threads,
        )
