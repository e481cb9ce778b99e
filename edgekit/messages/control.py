"""The control channel of edged and cloudd (WebSocket, JSON text frames)."""

# ruff: noqa: RUF012 - msgspec gives every message its own copy of a default list or dict
from __future__ import annotations

from edgekit.messages.base import Level, Message
from edgekit.messages.reports import ServiceReport, SpoolReport


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """First message of edged on the control channel."""

    protocol: int
    version: str
    name: str
    revision: str  # of the desired state it follows, "" for none
    machine: str = ""  # architecture and model, for people


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """Reported state, sent by edged at least every heartbeat."""

    services: list[ServiceReport]
    spool: SpoolReport | None
    health: Level
    problems: list[str] = []
    revision: str = ""
    at: float = 0.0


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """First message of cloudd."""

    heartbeat_s: float
    time: float
    name: str


class Desired(Message, frozen=True, kw_only=True, tag="desired"):
    """Desired state: the services this device should run, as service definition texts (TOML)."""

    revision: str
    services: list[str]


class Notice(Message, frozen=True, kw_only=True, tag="notice"):
    """Something a person on the other side should read; `code` is stable, `text` is a sentence."""

    code: str
    text: str


ToEdge = Welcome | Desired | Notice
ToCloud = Hello | Report | Notice
