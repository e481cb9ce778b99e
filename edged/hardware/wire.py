"""What adaptation and its bench children say to each other: one JSON object a line, orders down, answers up.

The child's answers go through a descriptor of their own, so that a library that prints cannot disturb them. A child
answers every order with one line, in turn.
"""

from __future__ import annotations

import msgspec

from edged.hardware.settings import ProbeResult, Setting

MAX_LINE = 1 << 20
"""Bytes of one line."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: for which model, and within which bounds."""

    package: str  # directory of the model package
    memory_bytes: int  # of private memory that the child may have
    cache: str = ""  # directory for what providers compile
    samples: int = 8  # pictures of the package that are used at most
    nice: int = 0  # how far the child steps back behind everything else on the machine


class Order(msgspec.Struct, tag_field="order", frozen=True, kw_only=True):
    """Base of what the parent asks."""


class Probe(Order, tag="probe", kw_only=True, frozen=True):
    """Open the setting, prove it, and close it again; answered by ProbeResult.

    `reference`: file with the CPU's answers, "" for none. `same_file`: whether they come from the same model file,
    which makes the allowed difference small. `write`: file to write this setting's answers to, "" for none.
    """

    setting: Setting
    reference: str = ""
    write: str = ""
    same_file: bool = False


class OpenSetting(Order, tag="open", kw_only=True, frozen=True):
    """Open the setting and warm it up, for at most `warm_s` seconds; answered by Done."""

    setting: Setting
    warm_s: float


class Run(Order, tag="run", kw_only=True, frozen=True):
    """Run an opened setting for about `seconds` with `callers` at once, `pause_s` between two runs of a caller;
    answered by Window."""

    setting: Setting
    seconds: float
    callers: int = 1
    pause_s: float = 0.0


class CloseSetting(Order, tag="close", kw_only=True, frozen=True):
    """Close the setting; answered by Done."""

    setting: Setting


AnyOrder = Probe | OpenSetting | Run | CloseSetting


class Answer(msgspec.Struct, tag_field="answer", frozen=True, kw_only=True):
    """Base of what the child says."""


class Hello(Answer, tag="hello", kw_only=True, frozen=True):
    """The package is read; orders may come."""


class Probed(Answer, tag="probed", kw_only=True, frozen=True):
    result: ProbeResult


class Window(Answer, tag="window", kw_only=True, frozen=True):
    """What one Run gave."""

    n: int
    p50_ms: float
    p95_ms: float
    wall_s: float
    cpu_s: float  # of the whole process
    rss_mb: float
    others: float = 0.0  # share of all CPUs that other processes took meanwhile


class Done(Answer, tag="done", kw_only=True, frozen=True):
    seconds: float = 0.0
    steady: bool = True  # False: the speed had not settled when the time for warming up was over


class Failed(Answer, tag="failed", kw_only=True, frozen=True):
    kind: str  # as in ProbeResult
    reason: str


AnyAnswer = Hello | Probed | Window | Done | Failed
