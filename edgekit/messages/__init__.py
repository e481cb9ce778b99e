"""Every message that crosses a border: between edged and cloudd, and between a daemon and its worker.

Encoded as JSON by msgspec, which checks types on the way in. Unknown fields are ignored, so that an older peer can talk
to a newer one; a message that changes its meaning gets a new name. Times are seconds since the epoch (wall clock, for
records only), durations are milliseconds when the name ends in `_ms`, sizes are bytes.

answers    hard samples and their answers
control    the control channel
decisions  what is said about one sample
federation federated jobs (import it as a module)
joining    tokens, certificates
models     what a device fetches
reports    how services, models and the spool get on
worker     a supervisor of edged and its worker
"""

from __future__ import annotations

from edgekit.messages.answers import (
    Answer,
    AskModel,
    FeaturesHeader,
    HardSample,
    ModelAnswer,
    Problem,
    briefly,
    in_full,
    packed,
    unpacked,
)
from edgekit.messages.base import PROTOCOL, DecidedAt, Level, Message, SendReason
from edgekit.messages.control import Desired, Hello, Notice, Report, ToCloud, ToEdge, Welcome
from edgekit.messages.decisions import NOTHING_FOUND, UNSEEN, DecidedRegion, Decision, Verdict
from edgekit.messages.joining import AuthorityInfo, Certificate, EnrollRequest, RenewRequest
from edgekit.messages.models import FileEntry, ModelEntry
from edgekit.messages.reports import (
    LATENCY_BOUNDS_MS,
    STAGE_BOUNDS_MS,
    GateFacts,
    ModelStatistics,
    OutputReport,
    PlanReport,
    RouteReport,
    ServiceReport,
    ShadowReport,
    SpoolReport,
)
from edgekit.messages.worker import (
    Comparison,
    Configure,
    DispatchChanged,
    Drain,
    Event,
    FromWorker,
    Held,
    Link,
    LinkChanged,
    ModelDone,
    ModelReport,
    ModelWanted,
    PurgeSpool,
    Ready,
    Recalibrate,
    RunSetting,
    SettingFailed,
    ToWorker,
    TroubleKind,
    WorkerReport,
)

__all__ = [
    "LATENCY_BOUNDS_MS",
    "NOTHING_FOUND",
    "PROTOCOL",
    "STAGE_BOUNDS_MS",
    "UNSEEN",
    "Answer",
    "AskModel",
    "AuthorityInfo",
    "Certificate",
    "Comparison",
    "Configure",
    "DecidedAt",
    "DecidedRegion",
    "Decision",
    "Desired",
    "DispatchChanged",
    "Drain",
    "EnrollRequest",
    "Event",
    "FeaturesHeader",
    "FileEntry",
    "FromWorker",
    "GateFacts",
    "HardSample",
    "Held",
    "Hello",
    "Level",
    "Link",
    "LinkChanged",
    "Message",
    "ModelAnswer",
    "ModelDone",
    "ModelEntry",
    "ModelReport",
    "ModelStatistics",
    "ModelWanted",
    "Notice",
    "OutputReport",
    "PlanReport",
    "Problem",
    "PurgeSpool",
    "Ready",
    "Recalibrate",
    "RenewRequest",
    "Report",
    "RouteReport",
    "RunSetting",
    "SendReason",
    "ServiceReport",
    "SettingFailed",
    "ShadowReport",
    "SpoolReport",
    "ToCloud",
    "ToEdge",
    "ToWorker",
    "TroubleKind",
    "Verdict",
    "Welcome",
    "WorkerReport",
    "briefly",
    "in_full",
    "packed",
    "unpacked",
]
