"""What the local API says about federated jobs. The command line imports it, so nothing heavy does."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edged.federation.notes import Event, JobView
from edged.federation.settings import Federation


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every body."""


class RefuseBody(_Body, frozen=True, kw_only=True):
    """`POST /federation/refuse`: this device leaves a job for ever. `job`: its id or the beginning of it."""

    job: Annotated[str, Meta(min_length=4, max_length=32)]
    reason: Annotated[str, Meta(max_length=300)] = ""


class JoinUpperBody(_Body, frozen=True, kw_only=True):
    """`POST /federation/join`: enrol at the upper cloudd of `federation.upper`, with a token of it."""

    token: Annotated[str, Meta(min_length=1, max_length=600)]


class AgreeBody(_Body, frozen=True, kw_only=True):
    """`POST /federation/agree`: this device may take part in a job. `job`: its id or the beginning of it."""

    job: Annotated[str, Meta(min_length=4, max_length=32)]


class LeaveBody(_Body, frozen=True, kw_only=True):
    """`POST /federation/leave`: this device takes its sums out of all heads of a service."""

    service: Annotated[str, Meta(min_length=1, max_length=64)]
    reason: Annotated[str, Meta(max_length=300)] = ""
    stay: bool = False  # no, leave them there


class FederationState(_Body, frozen=True, kw_only=True):
    """`GET /federation`."""

    enabled: bool
    device: str  # id
    node: str = ""  # how this device is called in records: hex
    lost: str = ""  # why the ledger cannot be relied on
    jobs: list[JobView] = []
    spent: dict[str, float] = {}  # service -> epsilon
    leaving: dict[str, str] = {}  # service of whose heads this device is to be out -> why
    epsilon: float | None = None  # the budget of each service
    delta: float = 0.0
    events: list[Event] = []


class AuditReply(_Body, frozen=True, kw_only=True):
    """`GET /federation/audit`: the newest records, and whether the whole chain holds."""

    records: list[msgspec.Raw]
    count: int  # in all
    wrong: int | None = None  # number of the first record that does not hold; None: all do


class PolicyReply(_Body, frozen=True, kw_only=True):
    """`GET /federation/policy`: the table in force."""

    federation: Federation
