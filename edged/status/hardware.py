"""What the device is, what was tried on it for each model, and what was chosen: one tree of plain values, for people.

Built by `edged.adaptation`; shown by the page, `edged doctor` and `/metrics`. Nothing here reads a clock or a file.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edged.hardware.shapes import Facts


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the tree."""


class TriedState(_State, frozen=True, kw_only=True):
    """A candidate, or one setting of it, that is not used: why, and what a person could do about it."""

    candidate: str  # profile#candidate
    reason: str
    remedy: str = ""


class MeasuredState(_State, frozen=True, kw_only=True):
    """One measured setting, warm."""

    setting: str  # in words
    candidate: str
    p50_ms: float
    p95_ms: float
    throughput: float  # pictures a second
    cpu_ms: float  # CPU time a picture
    rss_mb: float
    chosen: bool = False


class ModelHardware(_State, frozen=True, kw_only=True):
    """How one model runs for one objective, and what was tried for it."""

    model: str  # name@version
    objective: str  # latency | throughput | efficiency
    services: list[str] = []
    phase: Literal["safe", "waiting", "measuring", "chosen", "unmeasured"] = "safe"
    detail: str = ""  # one sentence about the phase
    running: str = ""  # the setting in use, in words
    setting: dict[str, str] = {}  # the same for machines: variant, runtime, provider, threads, workers
    accelerated: bool = False  # the setting in use needs more than the CPU
    chosen: str = ""  # the chosen setting, in words; "" before there is one
    reasons: list[str] = []  # why that one
    accepted: list[str] = []  # candidates that were tried
    rejected: list[TriedState] = []  # candidates that cannot work here
    failed: list[TriedState] = []  # settings that were tried and did not work
    measurements: list[MeasuredState] = []  # best first
    at: float | None = None  # when it was chosen


class Temperature(_State, frozen=True, kw_only=True):
    zone: str
    celsius: float


class LostState(_State, frozen=True, kw_only=True):
    """An accelerator that stopped working; its services run on the CPU."""

    candidate: str
    services: list[str]
    reason: str
    since: float
    failures: int  # tries since, the first failure included


class HardwareState(_State, frozen=True, kw_only=True):
    """The device and its models. `known` is False until the facts have been gathered."""

    known: bool = False
    mode: Literal["background", "never"] = "background"
    name: str = ""  # board, product or CPU, for people
    accelerators: list[str] = []  # matched profiles of accelerators and SoCs with one
    profiles: list[str] = []  # id@version of every matched profile
    untested: list[str] = []  # those of them that nobody has measured
    explanations: list[str] = []  # one sentence for each matched profile
    problems: list[str] = []  # profiles that cannot be read, a store that was damaged
    temperatures: list[Temperature] = []
    soft_c: float = 0.0
    hard_c: float = 0.0
    throttled: list[str] = []  # sentences about what slows the machine down now
    level: int = 0  # steps down from the chosen settings because of heat
    busy: str = ""  # why adaptation waits, "" if it does not
    lost: list[LostState] = []
    models: list[ModelHardware] = []


class HardwareReport(_State, frozen=True, kw_only=True):
    """`GET /hardware`: everything from the facts to the choice."""

    facts: Facts = Facts()
    fingerprint: str = ""
    state: HardwareState = HardwareState()
