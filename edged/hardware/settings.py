"""One way to run one model on this device, what a probe and a measurement say about it, and the choice made of them.

Shared by the adaptation in the supervisor, by its children that load models, and by the worker that serves. Imports no
numpy and no runtime.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgekit.runtimes.base import SessionOptions

Objective = Literal["latency", "throughput", "efficiency"]
"""What a service wants: the quickest answer, the most pictures a second, or the least CPU a picture."""

Precision = Literal["fp32", "fp16", "int8"]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides how a model runs. Equal settings have the same `key`."""

    candidate: str  # profile#candidate that proposed it
    variant: str  # the variant's file in the package
    runtime: str = "onnxruntime"
    provider: str = "cpu"
    provider_options: dict[str, str] = {}
    threads: int = 1  # threads inside one run
    workers: int = 1  # runs at the same time: model threads of the worker
    spinning: bool = False  # threads wait for the next operator of a run by spinning instead of sleeping
    arena: bool = True
    precision: Precision = "fp32"
    interpreter: str = ""  # path of the Python that runs the driver in its own process; "" for the worker itself

    @property
    def key(self) -> str:
        """One line of text that is equal for equal settings; the key of measurements and failures."""
        return msgspec.json.encode(self, order="deterministic").decode()

    @property
    def accelerated(self) -> bool:
        """Whether anything but the CPU's own kernels is used."""
        return self.provider != "cpu" or self.runtime not in CPU_RUNTIMES

    def options(self) -> SessionOptions:
        """What the runtime's driver is told."""
        return SessionOptions(
            threads=self.threads,
            spinning=self.spinning,
            arena=self.arena,
            provider=self.provider,
            provider_options=dict(self.provider_options),
            contexts=self.workers,
            interpreter=self.interpreter,
        )

    def text(self) -> str:
        """For people: model-int8.onnx by onnxruntime on cpu, 2 threads spinning, 1 worker."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}{' spinning' if self.spinning else ''}"
        workers = f"{self.workers} worker{'s' if self.workers != 1 else ''}"
        arena = "" if self.arena else ", no arena"
        return f"{self.variant} by {self.runtime} on {self.provider}, {threads}, {workers}{arena}"


CPU_RUNTIMES = frozenset(("onnxruntime", "litert"))
"""Runtimes whose provider "cpu" needs no accelerator and no vendor library."""


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a setting may be used at all. `reason` is a sentence if it may not."""

    ok: bool
    reason: str = ""
    kind: Literal["", "load", "wrong", "placement", "crash", "hang", "memory", "garbage", "missing"] = ""
    placement: dict[str, int] = {}  # provider -> operators it runs; empty where the runtime cannot tell
    agreement: float | None = None  # largest difference to the CPU's answer as a share of its range; None: no reference
    samples: int = 0  # of the package's own pictures that were answered as the package promises
    load_s: float = 0.0
    runtime_version: str = ""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What one setting did, warm. Latencies are of one caller; `throughput` of `setting.workers` callers at once."""

    setting: Setting
    p50_ms: float
    p95_ms: float
    throughput: float  # pictures a second
    cpu_ms: float  # CPU time a picture when pictures come with pauses, as from a camera; spinning shows here
    cpu_share: float  # CPU seconds a second of one caller without pauses; 1.0 is one whole CPU
    rss_mb: float  # resident memory of the process, MiB
    temperature_slope: float | None = None  # °C a minute while measured; None without a sensor
    n: int  # single runs behind p50 and p95

    @property
    def setting_key(self) -> str:
        return self.setting.key


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that must not be tried again on this hardware with these versions."""

    setting: Setting
    kind: str
    reason: str
    at: float  # Unix time


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The setting to run, why, and what to fall back to, best first (the last one is on the CPU)."""

    setting: Setting
    objective: Objective
    reasons: list[str]
    alternatives: list[Setting] = []
    measurements: list[Measurement] = []
    measured: bool = True  # False: the highest prior that passed its probe, never timed
    at: float = 0.0  # Unix time
