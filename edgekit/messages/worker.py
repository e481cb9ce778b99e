"""Between a supervisor of edged and its worker (envelopes over a socket pair)."""

# ruff: noqa: RUF012 - msgspec gives every message its own copy of a default list or dict
from __future__ import annotations

from typing import Literal

from edgekit.dispatch.policy import DispatchPolicy
from edgekit.messages.base import Level, Message
from edgekit.messages.reports import ModelStatistics, ServiceReport, SpoolReport


class Link(Message, frozen=True, kw_only=True):
    """Where cloudd is and how to speak to it; part of the worker's configuration and sent again when it changes."""

    url: str = ""  # https://host:port, "" while not joined
    up: bool = False  # the control channel's heartbeat says so
    identity: str = ""  # directory with key.pem, certificate.pem, authority.pem
    generation: int = 0  # rises when the certificate was renewed


class RunSetting(Message, frozen=True, kw_only=True):
    """How a service's model runs on this device. The fields are those of `edged.hardware.settings.Setting`."""

    candidate: str
    variant: str  # the variant's file in the package
    runtime: str
    provider: str = "cpu"
    provider_options: dict[str, str] = {}
    threads: int = 1
    workers: int = 1
    spinning: bool = False
    arena: bool = True
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    interpreter: str = ""


class Configure(Message, frozen=True, kw_only=True, tag="configure"):
    """First frame to a worker. A worker never changes its services: a change is a new worker."""

    state_dir: str
    services: list[str]  # service definition texts (TOML), checked by the supervisor
    packages: dict[str, str]  # name@version (and name) -> directory of the package
    link: Link
    spool_quota: int
    spool_reserve: int
    threads: int = 0  # model worker threads, 0 = allowed CPUs
    device_id: str = ""  # bound into the encryption of spooled samples
    held: list[str] = []  # names of wanted services that no worker runs now: their waiting samples stay
    settings: dict[str, RunSetting] = {}  # by service; one that is not in it runs in the safe way, on the CPU
    models: list[str] = []  # name@version of the models that are served without a service, all in `packages`
    management_token: str = ""  # who knows it may ask for models to be loaded and unloaded; "" = nobody
    compare: dict[str, str] = {}  # by service: name@version of its present model, where a new one takes over
    shadows: dict[str, str] = {}  # by service: name@version, in `packages`, of a candidate that only looks
    send_fd: int = -1  # inherited: a socket that takes this worker's idle connections when it is drained
    receive_fd: int = -1  # inherited: a socket that brings those of the worker before
    dispatch: DispatchPolicy | None = None  # where requests go when more comes than can be done; None: all stay here


class LinkChanged(Message, frozen=True, kw_only=True, tag="link"):
    link: Link


class DispatchChanged(Message, frozen=True, kw_only=True, tag="dispatch"):
    """`Configure.dispatch` has changed; it holds from the next request on."""

    policy: DispatchPolicy | None


class Held(Message, frozen=True, kw_only=True, tag="held"):
    """`Configure.held` has changed."""

    services: list[str]


class Drain(Message, frozen=True, kw_only=True, tag="drain"):
    """Stop accepting, finish what is in flight, flush, exit 0."""

    handover: bool = False  # there is a successor for idle connections: send them through `Configure.send_fd`


class ModelDone(Message, frozen=True, kw_only=True, tag="model-done"):
    """Reply to ModelWanted, also to a worker that drains already."""

    ticket: int
    error: str = ""  # "" = done


class PurgeSpool(Message, frozen=True, kw_only=True, tag="purge-spool"):
    service: str = ""  # "" = every service


class Recalibrate(Message, frozen=True, kw_only=True, tag="recalibrate"):
    service: str


class ModelWanted(Message, frozen=True, kw_only=True, tag="model-wanted"):
    """A client with the management token wants a model served without a service, or no longer served."""

    ticket: int  # the worker's own number
    ref: str  # name, or name@version
    wanted: bool = True


class ModelReport(Message, frozen=True, kw_only=True):
    """A model that is served without a service."""

    model: str  # name@version
    state: Literal["ready", "failed"]
    detail: str = ""


class Comparison(Message, frozen=True, kw_only=True):
    """A new model's answers to the pinned samples of the package that it replaces."""

    service: str
    model: str  # name@version
    previous: str  # name@version
    samples: int
    agreed: int  # the same label
    differing: list[str] = []  # a sentence about each of the first few others
    score_change: float = 0.0  # the largest difference of the score, among those that agree


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """Every service is loaded, warmed up and proved on its package's samples (or reported as failed)."""

    services: list[ServiceReport]
    models: list[ModelReport] = []
    comparisons: list[Comparison] = []
    base: int = 0  # resident bytes before the first model
    memory: dict[str, int] = {}  # by name@version: resident bytes that loading and proving it added, at its peak


class WorkerReport(Message, frozen=True, kw_only=True, tag="worker-report"):
    """Sent once a second by a ready worker; also its heartbeat. Two more come when it leaves."""

    services: list[ServiceReport]
    spool: SpoolReport
    rss: int
    uplink_bytes: int = 0
    breaker: str = "closed"  # closed | open | half-open
    models: list[ModelStatistics] = []
    leaving: bool = False  # no new connection comes to it any more, and its idle ones belong to its successor


class Event(Message, frozen=True, kw_only=True, tag="event"):
    """A line for the health list and the log; `code` is stable."""

    level: Level
    code: str
    text: str
    at: float
    passing: bool = False  # it has happened and nothing lasts: no item of the health list


TroubleKind = Literal["load", "run", "hang"]


class SettingFailed(Message, frozen=True, kw_only=True, tag="setting-failed"):
    """A service's setting does not work (any more). "load": the service runs in the safe way already."""

    service: str
    setting: RunSetting
    kind: TroubleKind
    reason: str


ToWorker = Configure | LinkChanged | DispatchChanged | Held | Drain | PurgeSpool | Recalibrate | ModelDone
FromWorker = Ready | WorkerReport | Event | SettingFailed | ModelWanted
