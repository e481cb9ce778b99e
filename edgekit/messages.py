"""Every message that crosses a border: between edged and cloudd, and between a supervisor and its worker.

Encoded as JSON by msgspec, which checks types on the way in. Unknown fields are ignored, so that an older peer can talk
to a newer one; a message that changes its meaning gets a new name. Times are seconds since the epoch (wall clock, for
records only), durations are milliseconds when the name ends in `_ms`, sizes are bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgekit.services import Pipeline

PROTOCOL = 1
"""Version of the edged-cloudd protocol. cloudd refuses another major number with a sentence that says so."""

DecidedAt = Literal["edge", "cloud", "edge-degraded"]
SendReason = Literal["hard", "audit", "calibrating", "safe-mode"]
Level = Literal["ok", "warning", "error"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every message."""


# --- decisions -------------------------------------------------------------------------------------------------------


class Verdict(Message, frozen=True, kw_only=True):
    """What one model says about one sample."""

    label: str
    score: float  # probability of the label, 0..1
    margin: float  # probability of the label minus that of the runner-up, 0..1
    model: str  # name@version


class Decision(Message, frozen=True, kw_only=True):
    """The answer of `POST /v1/services/NAME/inspect`, and one line of a service's JSONL output."""

    sample_id: str
    service: str
    label: str
    score: float
    decided: DecidedAt
    model: str  # name@version of the model whose label this is
    edge: Verdict
    cloud: Verdict | None = None
    sent: SendReason | None = None  # why the gate asked for the cloud, None when the local answer was trusted
    spooled: bool = False  # the sample waits on disk for the link
    certified: bool = False  # the gate's risk bound holds for this local answer
    reason: str = ""  # why a hard sample was decided at the edge all the same
    serial: str = ""  # the board's serial number, if the source gave one
    captured_at: float = 0.0
    timings_ms: dict[str, float] = {}  # queue, decode, infer, cloud, total
    verdict: Literal["", "pass", "fail", "review"] = ""  # by the service's rules, of the final label; "" without rules
    region: list[int] = []  # left, top, right, bottom in pixels of what decided at the edge, with a pipeline


# --- joining ---------------------------------------------------------------------------------------------------------


class AuthorityInfo(Message, frozen=True, kw_only=True):
    """Reply of `GET /v1/authority`, the only thing cloudd tells a stranger."""

    protocol: int
    name: str
    certificate_pem: str
    fingerprint: str  # base64url SHA-256 of the authority's SubjectPublicKeyInfo


class EnrollRequest(Message, frozen=True, kw_only=True):
    """`POST /v1/enroll`, sent only inside TLS that verified the authority pinned by the token."""

    protocol: int
    token_id: str
    secret: str
    csr_pem: str
    name: str  # what people call the device


class RenewRequest(Message, frozen=True, kw_only=True):
    """`POST /v1/renew`, authenticated by the present certificate."""

    csr_pem: str


class Certificate(Message, frozen=True, kw_only=True):
    """Reply of enroll and renew."""

    device_id: str
    certificate_pem: str
    authority_pem: str
    not_after: float


# --- hard samples ----------------------------------------------------------------------------------------------------


class HardSample(Message, frozen=True, kw_only=True):
    """Header of the envelope that `POST /v1/answers` carries; the payload is the picture as it came (JPEG or PNG)."""

    sample_id: str
    service: str
    answer_model: str  # name, or name@version
    edge: Verdict
    reason: SendReason
    captured_at: float
    serial: str = ""
    late: bool = False  # it comes from the spool: nobody waits for the answer
    pipeline: Pipeline | None = None  # what of the picture the edge looked at, and the cloud is to look at


class Answer(Message, frozen=True, kw_only=True):
    """Reply of `POST /v1/answers`. The same sample id always gets the same answer."""

    sample_id: str
    verdict: Verdict
    compute_ms: float
    repeated: bool = False  # this sample had been answered before


class Problem(Message, frozen=True, kw_only=True):
    """Body of every error reply."""

    error: str
    retry_after_s: float | None = None


# --- models ----------------------------------------------------------------------------------------------------------


class FileEntry(Message, frozen=True, kw_only=True):
    path: str
    sha256: str
    size: int


class ModelEntry(Message, frozen=True, kw_only=True):
    """Reply of `GET /v1/models/NAME` (newest) or `GET /v1/models/NAME/VERSION`: what to fetch from /v1/blobs/SHA256."""

    name: str
    version: str
    digest: str  # SHA-256 of package.toml
    files: list[FileEntry]  # package.toml included


LATENCY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Upper bounds of the latency histogram in a ServiceReport."""
STAGE_BOUNDS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
"""Upper bounds of the histograms of its stages, some of which take microseconds."""


# --- control channel (WebSocket, JSON text frames) -------------------------------------------------------------------


class OutputReport(Message, frozen=True, kw_only=True):
    """How one output of a service gets on. The counters are of the worker that reports (see edged.tally)."""

    name: str  # the file, or the address without what a URL may hide
    kind: str
    delivered: int = 0  # decisions
    waiting: int = 0  # in memory and on the disk, also from before
    dropped: int = 0  # given up: no room, or refused by the receiver
    failing_since: float | None = None  # wall clock
    problem: str = ""  # why it fails now


class ServiceReport(Message, frozen=True, kw_only=True):
    """Reported state of one service."""

    name: str
    model: str
    state: Literal["ready", "loading", "failed"]
    detail: str = ""
    inspected: int = 0
    edge: int = 0
    cloud: int = 0
    degraded: int = 0
    offload_share: float = 0.0  # of the last 1,000 samples
    agreement: float | None = None  # share of cloud answers that equal the edge's
    p50_ms: float | None = None
    p99_ms: float | None = None
    infer_p95_ms: float | None = None  # of the model alone, without decoding, queue and cloud
    gate: str = ""  # one sentence: calibrating (412 missing), certified 1.8 % at 90 %, safe mode ...
    labels: dict[str, int] = {}
    refused: int = 0  # pictures and requests that could not be read (4xx, refused files)
    shed: int = 0  # dropped because the queue was full or the deadline passed in it (503)
    errors: int = 0  # failures of our own (500)
    waiting: int = 0  # requests in the queue now
    last_at: float | None = None  # wall clock of the newest decision
    latency_counts: list[int] = []  # decisions per bound of LATENCY_BOUNDS_MS, and beyond the last; since start
    latency_sum_ms: float = 0.0
    verdicts: dict[str, int] = {}  # decisions by verdict; empty without rules
    recent_p50_ms: float | None = None  # of the last ten seconds, for the picture over time
    recent_p99_ms: float | None = None
    recent_per_s: float = 0.0  # decisions
    stage_counts: dict[str, list[int]] = {}  # by stage (queue, decode, infer, cloud): per bound of STAGE_BOUNDS_MS
    stage_sums_ms: dict[str, float] = {}
    not_run: dict[str, int] = {}  # jobs that the engine did not run: full, overloaded, expired, stale, cancelled
    runs: int = 0  # jobs that it ran
    inline_runs: int = 0  # of these in the event loop itself, without a thread
    outputs: list[OutputReport] = []
    preview: str = ""  # what the newest picture shows and what was decided about it; "" while there is none


class ModelStatistics(Message, frozen=True, kw_only=True):
    """What one model version did over the Open Inference Protocol since the worker started; durations in microseconds.

    The names are those of Triton's `nv_inference_*` metrics, which mean the same.
    """

    name: str
    version: str  # the package's
    success: int = 0  # requests answered
    rejected: int = 0  # refused before the model: no place in the queue, past the deadline
    canceled: int = 0  # the client hung up
    backend: int = 0  # the model failed
    other: int = 0  # malformed requests and unreadable pictures
    inference_count: int = 0  # batch elements
    exec_count: int = 0  # runs of the model
    request_us: int = 0  # of the answered requests, from the parsed request to the encoded reply
    queue_us: int = 0
    compute_input_us: int = 0  # tensors read, pictures decoded and prepared
    compute_infer_us: int = 0
    compute_output_us: int = 0  # checked and encoded
    pending: int = 0  # accepted and waiting for a thread now
    last_at: float = 0.0  # wall clock of the newest answer, 0 for none


class SpoolReport(Message, frozen=True, kw_only=True):
    items: int
    bytes: int
    quota: int
    oldest_at: float | None = None
    evicted: int = 0
    delivered: int = 0


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


# --- supervisor and worker of edged (envelopes over a socket pair) ---------------------------------------------------


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
    send_fd: int = -1  # inherited: a socket that takes this worker's idle connections when it is drained
    receive_fd: int = -1  # inherited: a socket that brings those of the worker before


class LinkChanged(Message, frozen=True, kw_only=True, tag="link"):
    link: Link


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
    """Sent once a second by a ready worker; also its heartbeat."""

    services: list[ServiceReport]
    spool: SpoolReport
    rss: int
    uplink_bytes: int = 0
    breaker: str = "closed"  # closed | open | half-open
    models: list[ModelStatistics] = []


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


ToWorker = Configure | LinkChanged | Held | Drain | PurgeSpool | Recalibrate | ModelDone
FromWorker = Ready | WorkerReport | Event | SettingFailed | ModelWanted


# --- cloudd and its answer worker (envelopes over a socket pair) -----------------------------------------------------


class AskModel(Message, frozen=True, kw_only=True, tag="ask"):
    """Classify the payload (a picture) with the package in `directory`."""

    ticket: int
    model: str
    directory: str
    pipeline: Pipeline | None = None


class ModelAnswer(Message, frozen=True, kw_only=True, tag="answer"):
    """Reply to AskModel; the payload is a JPEG thumbnail that the worker drew itself, empty on error."""

    ticket: int
    verdict: Verdict | None = None
    compute_ms: float = 0.0
    error: str = ""
    fault: Literal["", "picture", "model"] = ""  # whose fault the error is
