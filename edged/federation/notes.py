"""What is kept and shown about jobs. The command line and the status page import it, so nothing heavy does."""

from __future__ import annotations

from typing import Literal

import msgspec

Stage = Literal["waiting", "training", "round", "judging", "done", "stopped", "refused", "failed"]
Level = Literal["info", "refused", "alarm"]
Outcome = Literal["summed", "void", "left", "refused"]
"""As `edgekit.secagg.audit.Outcome`, which needs more imports than a supervisor has."""


class JobNote(msgspec.Struct, frozen=True, kw_only=True):
    """Where this device stands in a job, for people and for the supervisor's decision to go on."""

    job: str  # hex
    service: str
    model: str  # name@version that it begins with
    secure: bool
    private: bool
    rounds: int  # in all
    version: int = 0  # published sums applied so far
    round: int = -1  # of the protocol, the newest
    contributed: int = 0  # rounds in whose published sum (of a site's job: in whose site's sum) this device's vector is
    samples: int = 0  # labelled pictures that it learns from
    stage: Stage = "waiting"
    text: str = ""  # a sentence about the stage
    head: bool = False  # a head of one round
    leads: bool = False  # this device speaks for its site in the upper job; it learns nothing itself


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, for people."""

    at: float
    job: str
    level: Level
    text: str


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job as this device sees it."""

    note: JobNote
    running: bool = False  # a process takes part now
    listed: bool = False  # cloudd says that it goes on
    why: str = ""  # why this device does nothing in it now
    waits: bool = False  # for somebody at the device to agree
