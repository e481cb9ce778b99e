"""What the local API says, as Structs: shared by the supervisor's side and the thin client."""

from __future__ import annotations

import msgspec

from edgekit.messages import Level


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every body of the local API."""


class JoinBody(_Body, frozen=True, kw_only=True):
    """`POST /join`."""

    token: str
    url: str = ""
    name: str = ""


class JoinReply(_Body, frozen=True, kw_only=True):
    device_id: str
    url: str
    name: str  # what that cloudd calls itself


class ModelBody(_Body, frozen=True, kw_only=True):
    """`POST /models`: a directory on this machine, or a reference to fetch from cloudd."""

    path: str = ""
    ref: str = ""


class Progress(_Body, frozen=True, kw_only=True):
    """One line of the reply of `POST /models`. The last line has `ref` or `error`."""

    done: int = 0  # bytes
    total: int = 0
    ref: str = ""
    error: str = ""


class ServeBody(_Body, frozen=True, kw_only=True):
    """`POST /served`: NAME (the newest installed version) or NAME@VERSION."""

    ref: str


class PurgeBody(_Body, frozen=True, kw_only=True):
    """`POST /spool/purge`; "" means every service."""

    service: str = ""


class AdaptBody(_Body, frozen=True, kw_only=True):
    """`POST /adapt`: "" means every service; `again` also where there is a choice already."""

    service: str = ""
    again: bool = False


class AdaptProgress(_Body, frozen=True, kw_only=True):
    """One line of the reply of `POST /adapt`. A line with `text` says what came out for one model."""

    model: str = ""
    step: str = ""  # what is being done
    text: str = ""
    error: str = ""
    done: bool = False  # the last line


class Done(_Body, frozen=True, kw_only=True):
    """Reply of what has no other answer: one sentence about what was done."""

    text: str


class ServiceText(_Body, frozen=True, kw_only=True):
    """`GET /services/NAME`."""

    name: str
    text: str
    refused: str = ""


class Finding(_Body, frozen=True, kw_only=True):
    """What one check of the doctor found."""

    id: str  # stable
    title: str
    level: Level
    text: str
    remedy: str = ""


class Problem(_Body, frozen=True, kw_only=True):
    """Body of every error reply."""

    error: str


class ApiError(Exception):
    """The request cannot be done: an HTTP status and one sentence that says why and what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
