"""How services, models and the spool get on."""

# ruff: noqa: RUF012 - msgspec gives every message its own copy of a default list or dict
from __future__ import annotations

from typing import Literal

from edgekit.messages.base import Message

LATENCY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Upper bounds of the latency histogram in a ServiceReport."""
STAGE_BOUNDS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
"""Upper bounds of the histograms of its stages, some of which take microseconds."""


class OutputReport(Message, frozen=True, kw_only=True):
    """How one output of a service gets on. The counters are of the worker that reports (see edged.tally)."""

    name: str  # the file, or the address without what a URL may hide
    kind: str
    delivered: int = 0  # decisions
    waiting: int = 0  # in memory and on the disk, also from before
    dropped: int = 0  # given up: no room, or refused by the receiver
    failing_since: float | None = None  # wall clock
    problem: str = ""  # why it fails now


class RouteReport(Message, frozen=True, kw_only=True):
    """One way to the answer model, as edgekit.planning.explain and assess see it now."""

    name: str  # edge, edge-whole, frame, regions, split@CUT
    what: str  # the same in words
    feasible: bool = False
    chosen: bool = False
    accuracy: str = "edge"  # exact, equal, edge
    latency_ms: float = 0.0  # of an asked frame, 95th percentile or so
    bytes: float = 0.0  # on the uplink, a frame of the line
    cost: float = 0.0  # by the service's objective, in milliseconds
    why: str = ""  # it was chosen, or not


class PlanReport(Message, frozen=True, kw_only=True):
    """How a service's asked samples reach the answer model now, and why."""

    route: str  # the name of the chosen one
    sentence: str
    reason: str = ""  # what made the planner choose it
    link: str = ""  # what the plan thinks of the link
    objective: str = "latency"
    changes: int = 0  # how often the route has changed since the worker started
    routes: list[RouteReport] = []  # the chosen one first, then the feasible ones, cheapest first
    omitted: int = 0  # further routes, all of them worse


class GateFacts(Message, frozen=True, kw_only=True):
    """What the gate of a service knows about the traffic, for the triggers of learning.

    With groups of labels, the bound and what belongs to it are those of the group that is nearest to its limit.
    """

    alarms: int = 0  # drift and audit alarms since the gate began; it begins anew with another model
    looks: int = 0  # calibration blocks in a row that certified nothing
    alpha: float | None = None  # the risk that was asked for; None without such a promise
    seen: int = 0  # samples since the threshold was certified
    audits: int = 0  # answers given here since then whose truth is known
    audit_bound: float | None = None  # upper confidence bound of the share of samples decided here and differing
    calibrated: float | None = None  # share of samples, audits among them, that were to be sent by the calibration


class ShadowReport(Message, frozen=True, kw_only=True):
    """How a candidate does that looks at live pictures after their decision and decides nothing itself.

    The counters are those of edgekit.learning.trial.Tally, of the worker that reports (see edged.tally).
    """

    candidate: str  # name@version
    items: int = 0  # pictures that it looked at
    agreeing: int = 0  # with the model that decides here
    unusable: int = 0  # no answer, or none that is a number
    audits: int = 0  # the cloud's answer is known
    lost: int = 0  # of these: the present model agrees with the cloud, and the candidate does not
    gained: int = 0  # the other way round
    sent: int = 0  # pictures that the present model's threshold sends
    would_send: int = 0  # that the policy would send at least, if the candidate decided
    skipped: int = 0  # pictures that it did not look at: one waited already, or its share of the CPU was used up
    p95_ms: float | None = None  # of the candidate's model alone
    failure: str = ""  # why it does not look at pictures, or no longer; then nothing is counted any more


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
    regions: dict[str, int] = {}  # where decisions have them: candidates, defects, and cloud: those that it answered
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
    plan: PlanReport | None = None  # None: nobody is asked, or nothing may leave
    audited: int = 0  # audits of answers given here by the present model that the cloud has answered
    audited_differing: int = 0  # of these: it says something else
    gate_facts: GateFacts | None = None  # None: the service has no model, or its gate promises and measures nothing
    shadow: ShadowReport | None = None  # None: it has no candidate


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
