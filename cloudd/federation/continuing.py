"""A head of one round that continues an earlier one: it begins with its totals, so that sites can take theirs out.

An ended head keeps its files and its sum for as long as no later one has ended that continues it: without the totals
nothing could be taken out of them any more.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloudd.federation import files
from cloudd.federation.errors import FederationError
from cloudd.federation.files import PLAN_FOLDER
from cloudd.federation.progress import Progress
from cloudd.federation.store import FederationStore, JobRow
from edgekit import atomic, tensors
from edgekit.federated.head_jobs import MAX_EARLIER, TOTALS, TOTALS_FILE, OneRoundHead
from edgekit.federated.plan import Plan
from edgekit.federated.rounds import CohortSum, read_words
from edgekit.messages.federation import MAX_SUMS, FederatedJob
from edgekit.packages import Package
from edgekit.secagg import messages

_MODE = 0o600


def head_of(job: FederatedJob) -> OneRoundHead | None:
    """The settings of a head; None of a job that trains."""
    strategy = msgspec.json.decode(job.plan, type=Plan).strategy
    return strategy if isinstance(strategy, OneRoundHead) else None


async def caught_up(row: JobRow, store: FederationStore, folder: Path) -> Progress:
    """The job's state after all published sums. Raises FederatedError, AutodiffError, StorageError, OSError."""
    await files.materialise(row.job, store.blobs, folder / PLAN_FOLDER)
    progress = await asyncio.to_thread(Progress, row.job, folder)
    while progress.version < row.version:
        for published in await store.published(row.id, progress.version, MAX_SUMS):
            sums = []
            for one in published.sums:
                config = messages.from_cloud(one.config)
                assert isinstance(config, messages.RoundConfig)
                words = read_words(await store.blobs.get(one.sha256), config)
                sums.append(CohortSum(words, one.survivors, config, frozenset(one.nodes)))
            state, _ = await asyncio.to_thread(progress.after, sums)
            await asyncio.to_thread(progress.move, state)
    return progress


async def continued(
    earlier: JobRow, service: str, plan: Plan, base: Package, store: FederationStore, folder: Path
) -> Plan:
    """The plan of a job that goes on with the totals of `earlier`, whose files then lie in `folder`, which is made.

    Raises FederationError where the two do not fit together, or another job goes on with them already: devices know
    what they have in the newest totals only. FederatedError, AutodiffError, StorageError, OSError.
    """
    before, now = head_of(earlier.job), plan.strategy
    if before is None or not isinstance(now, OneRoundHead):
        raise FederationError(f"{earlier.name} is no head of one round, so no job can continue it")
    if not _ended(earlier):
        why = "is not over yet" if earlier.ended_at is None else "has ended without a sum"
        raise FederationError(f"{earlier.name} {why}, so it has no totals to continue")
    for row in await store.jobs():
        head = head_of(row.job)
        if head is not None and earlier.id in head.continues and (row.ended_at is None or _ended(row)):
            raise FederationError(f"{row.name} continues {earlier.name}; continue that one")
    told = [
        ("service", earlier.job.service, service),
        ("model", f"{earlier.job.model} ({earlier.job.package[:12]})", f"{base.ref} ({base.digest[:12]})"),
        ("balanced", str(before.balanced), str(now.balanced)),
        ("fraction_bits", str(before.fraction_bits), str(now.fraction_bits)),
    ]
    for name, was, wanted in told:
        if was != wanted:
            raise FederationError(f"{name} of {earlier.name} is {was}, not {wanted}: the totals are of the former")
    aside = folder.with_name(f"{folder.name}-earlier")
    try:
        progress = await caught_up(earlier, store, aside)
        totals = tensors.save({TOTALS: progress.state.model})
        await asyncio.to_thread((aside / PLAN_FOLDER).rename, folder)
        await asyncio.to_thread(atomic.write_file, folder / TOTALS_FILE, totals, _MODE)
    finally:
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
    strategy = msgspec.structs.replace(now, continues=(earlier.id, *before.continues)[:MAX_EARLIER])
    return msgspec.structs.replace(plan, strategy=strategy)


def lasting(rows: Sequence[JobRow]) -> set[str]:
    """The ids of ended heads that can still be continued, and of which nothing may be forgotten."""
    heads = {row.id: head for row in rows if _ended(row) and (head := head_of(row.job)) is not None}
    gone_on = {one for head in heads.values() for one in head.continues}
    return heads.keys() - gone_on


def _ended(row: JobRow) -> bool:
    """Whether it has totals that stay as they are; also where no model could be made of them."""
    return row.ended_at is not None and row.version > 0
