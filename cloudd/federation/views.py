"""What people see of federated jobs: the command line, the admin API and the dashboard show the same."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudd.federation.cohort import Cohort
from cloudd.federation.service import Federation
from cloudd.federation.store import FiguresRecord, JobRow, LogLine, RefusalRecord, RoundRow, Status, StepRecord
from edgekit.identity import short_id
from edgekit.messages.federation import RoundKind

_ROUNDS = 1000


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job in a list."""

    id: str
    name: str
    service: str
    model: str
    status: Status
    reason: str
    doing: str  # a sentence
    secure: bool
    rounds: int  # that it ends after
    version: int  # that are published
    standing: int  # devices that stand ready
    created_at: float
    ended_at: float | None
    result: str  # the merged model, name@version
    upper: str = ""  # of a site's job: id of the job between sites
    leader: str = ""  # of a site's job: short id of the device that hands its sums on


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """One try of one cohort."""

    number: int
    kind: RoundKind
    version: int  # of the state that it is a round of
    opened_at: float
    closed_at: float | None
    outcome: Literal["", "summed", "void"]
    reason: str
    invited: int
    delivered: int  # vectors
    steps: list[StepRecord]
    refusals: list[RefusalRecord]
    figures: FiguresRecord | None
    change: float | None
    bytes_up: int


class JobDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One job with its rounds, newest first, and its log, newest last."""

    job: JobView
    plan: msgspec.Raw
    least: int
    most: int
    rosters: list[str]  # SHA-256
    rounds: list[RoundView]
    log: list[LogLine]


async def jobs(federation: Federation) -> list[JobView]:
    """All jobs, newest first. Raises StorageError."""
    return [_job(federation, row) for row in await federation.store.jobs()]


async def detail(federation: Federation, text: str, lines: int = 200) -> JobDetail:
    """One job by name or id. Raises FederationError, StorageError."""
    row = await federation.find(text)
    run = federation.runs.get(row.id)
    live = run.cohorts if run is not None else {}
    rounds = await federation.store.rounds(row.id, limit=_ROUNDS)
    return JobDetail(
        job=_job(federation, row),
        plan=msgspec.Raw(row.job.plan.encode()),
        least=row.job.least,
        most=row.job.most,
        rosters=[one.sha256 for one in row.job.rosters],
        rounds=[_round(one, live.get(one.number)) for one in rounds],
        log=await federation.store.log(row.id, lines),
    )


def _job(federation: Federation, row: JobRow) -> JobView:
    run = federation.runs.get(row.id)
    doing = row.reason or row.status
    if row.status == "packing":
        doing = "the merged model is being packed"
    if run is not None and row.status == "running":
        doing = "; ".join(_doing(one) for one in run.cohorts.values()) or run.gathering or "beginning"
    waits = {federation.waiting.get(row.id, "")}
    if run is not None:
        waits |= {run.waits, *(one.waits for one in run.cohorts.values())}
    if any(waits):
        doing = f"{doing}; waiting for storage: {', '.join(sorted(filter(None, waits)))}"
    return JobView(
        id=row.id,
        name=row.name,
        service=row.job.service,
        model=row.job.model,
        status=row.status,
        reason=row.reason,
        doing=doing,
        secure=row.job.secure,
        rounds=row.job.rounds,
        version=row.version,
        standing=run.standing if run is not None else 0,
        created_at=row.created_at,
        ended_at=row.ended_at,
        result=row.result,
        upper=row.job.upper.id if row.job.upper is not None else "",
        leader=short_id(row.job.leader),
    )


def _doing(cohort: Cohort) -> str:
    kind = "" if cohort.row.kind == "learn" else " (evaluation)"
    return (
        f"round {cohort.row.number}{kind}: {cohort.delivered} of {len(cohort.invited)} vectors are here, "
        f"{cohort.left_s:.0f} s left for the others"
    )


def _round(row: RoundRow, live: Cohort | None) -> RoundView:
    steps = live.steps if live is not None else row.record.steps
    delivered = max((one.devices for one in steps if one.step in ("masked", "vectors")), default=0)
    return RoundView(
        number=row.number,
        kind=row.kind,
        version=row.version,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        outcome=row.outcome,
        reason=row.reason,
        invited=len(row.invited),
        delivered=live.delivered if live is not None else delivered,
        steps=list(steps),
        refusals=list(live.refusals if live is not None else row.record.refusals),
        figures=row.record.figures,
        change=row.record.change,
        bytes_up=row.record.bytes_up,
    )
