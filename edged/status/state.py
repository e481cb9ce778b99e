"""Everything the status page, `edged status` and `/metrics` show, as one tree of plain values.

The supervisor builds it anew for every request; nothing here reads a clock, a file or a socket. Times are seconds since
the epoch, sizes are bytes, durations end in `_ms` or `_s`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edged.federation.notes import JobView
from edged.learning.bodies import LearningState
from edged.status.hardware import HardwareState
from edgekit.messages import Level, ModelStatistics, ServiceReport, SpoolReport


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the tree: its own fields are always present in JSON. Messages inside (reports) leave out defaults."""


class HealthItem(_State, frozen=True, kw_only=True):
    """Something that is wrong now. `code` is stable, `text` is a sentence with what to do."""

    code: str
    severity: Level  # warning or error
    text: str
    since: float


class HealthEvent(_State, frozen=True, kw_only=True):
    """Something that happened: a health item that came or went, or a line from the worker."""

    at: float
    level: Level
    code: str
    text: str


class Health(_State, frozen=True, kw_only=True):
    level: Level = "ok"
    verdict: str = "Everything works."  # one sentence: the first line of the page
    items: list[HealthItem] = []  # errors first, then the oldest
    events: list[HealthEvent] = []  # newest first, at most 20


class Machine(_State, frozen=True, kw_only=True):
    """What this device is and how it feels."""

    hostname: str = ""
    architecture: str = ""
    model: str = ""  # board or CPU name
    cpus: int = 0  # the CPUs this daemon may use
    cpu_percent: float = 0.0  # of the whole machine, last 5 s
    memory_total: int = 0
    memory_available: int = 0
    disk_total: int = 0  # of the file system with the state directory
    disk_free: int = 0
    temperature_c: float | None = None  # the hottest sensor


class Addresses(_State, frozen=True, kw_only=True):
    inference: str = ""  # host:port
    page: str = ""  # host:port
    api: str = ""  # path of the unix socket


class CloudState(_State, frozen=True, kw_only=True):
    """The link to cloudd as the supervisor sees it."""

    joined: bool = False
    url: str = ""  # https://host:port of the cloudd in use, or the last one known
    name: str = ""  # what that cloudd calls itself
    up: bool = False  # its heartbeat arrives
    since: float | None = None  # when `up` last changed
    authority: str = ""  # fingerprint of the pinned authority
    certificate_until: float | None = None
    detail: str = ""  # one sentence: why the link is down, or what it does now


class WorkerState(_State, frozen=True, kw_only=True):
    """The process that runs the models."""

    state: Literal["ready", "starting", "waiting", "stopped"] = "stopped"  # waiting: for the next restart
    pid: int | None = None
    since: float | None = None
    restarts: int = 0  # since the supervisor started
    rss: int = 0
    breaker: str = "closed"  # closed | open | half-open
    uplink_bytes: int = 0
    swapping: bool = False  # a successor is loading while this one serves


class ServiceState(_State, frozen=True, kw_only=True):
    """One service: what was asked for, and what the worker reports."""

    name: str
    origin: Literal["local", "cloud"]
    model: str  # as the definition names it
    priority: str
    deadline_ms: float
    source: str  # the kind, and where: "http", "folder /path", "rtsp://host/stream"
    may_leave: str
    hard_samples: str  # risk | budget | filter | off: nobody is asked
    answer_model: str
    report: ServiceReport
    refused: str = ""  # why the newest definition is not in use; the last good one runs instead
    last_good: bool = False  # the definition in use is the last good one
    comparison: str = ""  # how the present model answered the samples of the one before


class ModelState(_State, frozen=True, kw_only=True):
    """One installed package."""

    name: str
    version: str
    digest: str  # SHA-256 of package.toml
    task: str = ""
    description: str = ""
    variants: list[str] = []  # runtime/precision
    size: int = 0
    used_by: list[str] = []  # names of services
    served: bool = False  # without a service


class ServedState(_State, frozen=True, kw_only=True):
    """One model that is served without a service."""

    wanted: str  # NAME or NAME@VERSION, as it was asked for
    model: str  # name@version that runs, "" while it is not known
    state: Literal["ready", "loading", "failed"]
    detail: str = ""
    refused: str = ""  # why the newest version is not in use; the last good one is served instead
    last_good: bool = False


class StatusState(_State, frozen=True, kw_only=True):
    version: str
    name: str  # what people call the device
    device_id: str
    state_dir: str
    started_at: float
    now: float
    supervisor_rss: int = 0
    health: Health = Health()
    machine: Machine = Machine()
    addresses: Addresses = Addresses()
    cloud: CloudState = CloudState()
    worker: WorkerState = WorkerState()
    services: list[ServiceState] = []
    models: list[ModelState] = []
    served: list[ServedState] = []  # models without a service
    spool: SpoolReport | None = None  # None before the worker's first report
    hardware: HardwareState = HardwareState()
    learning: list[LearningState] = []  # services that learn, or have learned something
    federation: list[JobView] = []  # federated jobs, those that go on first
    inference: list[ModelStatistics] = []  # each model version over the Open Inference Protocol
