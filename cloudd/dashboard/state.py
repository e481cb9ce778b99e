"""Everything the dashboard shows, as plain data: the page renders it, /state.json is it.

Texts that come from devices (names, labels, serial numbers, problems) are hostile: a page must escape every one.
"""

from __future__ import annotations

import msgspec

from cloudd.answers.pool import PoolLoad
from cloudd.retraining.view import RetrainingView
from edgekit.messages import Level, ServiceReport, SpoolReport, Verdict
from edgekit.regions.header import MosaicAnswer, MosaicHeader


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device with what it reported last. Times are seconds since the epoch."""

    device_id: str
    short_id: str
    name: str
    online: bool
    revoked: bool
    enrolled_at: float
    seen_at: float | None
    certificate_until: float
    version: str
    machine: str
    health: Level | None  # None: it has not reported yet
    problems: list[str]
    services: list[ServiceReport]
    spool: SpoolReport | None
    reported_at: float | None
    desired_revision: str  # "" if nobody has set a desired state
    reported_revision: str
    in_sync: bool  # it follows the desired state, or there is none


class SampleView(msgspec.Struct, frozen=True, kw_only=True):
    """One answered hard sample with both verdicts."""

    id: str  # of the answer; part of the picture's address
    sample_id: str
    device_id: str
    device: str  # name
    service: str
    serial: str
    reason: str  # hard | audit | calibrating | safe-mode
    late: bool  # it came from a spool
    captured_at: float
    answered_at: float
    edge: Verdict
    cloud: Verdict
    agree: bool  # the same label; of a mosaic: in every region; also if `edge` is UNSEEN
    compute_ms: float
    thumbnail: str  # path on this server; "" if there is no picture
    regions: int = 0  # of a mosaic, 0 of a whole picture
    differ: int = 0  # regions to which the answer is not the edge's
    tail: str = ""  # of features, which are not kept: the tail package, name@version, and its cut
    cut: str = ""


class SampleDetail(SampleView, frozen=True, kw_only=True):
    """A hard sample with everything that is known of its parts."""

    differing: list[int]  # indices of the regions to which the answer is not the edge's
    mosaic: MosaicHeader | None  # None of a whole picture, and once the picture was removed
    mosaic_answer: MosaicAnswer | None  # None if a whole picture was classified


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model version that devices can fetch or that answers hard samples."""

    name: str
    version: str
    digest: str
    files: int
    size: int  # bytes of all files


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the whole fleet."""

    devices: int
    online: int
    revoked: int
    services: int
    inspected: int  # as reported by the devices that are not revoked
    decided_edge: int
    decided_cloud: int
    decided_degraded: int
    spooled: int
    answered: int
    compared: int  # of these, where the edge had said something itself
    agreed: int  # and of these, where it was the same


class DashboardState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole page."""

    name: str
    version: str
    now: float
    started_at: float
    device_url: str  # what devices connect to
    fingerprint: str  # of the authority
    advertised: bool
    health: Level
    problems: list[str]
    totals: Totals
    devices: list[DeviceView]
    samples: list[SampleView]  # newest first
    models: list[ModelView]
    answering: PoolLoad
    retraining: list[RetrainingView] = []  # newest first
    logged_in: bool = False  # this browser may use the buttons
