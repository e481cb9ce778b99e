"""Has the merged model made by a process of its own, and registers it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from cloudd.federation.child import ask
from cloudd.federation.errors import FederationError
from cloudd.federation.files import PLAN_FOLDER
from cloudd.federation.job import JobRun
from cloudd.federation.lineage import Job as MergedJob
from cloudd.federation.lineage import Merged, Order
from cloudd.registry import Registry, RegistryError
from edgekit import atomic, tensors
from edgekit.federated.errors import FederatedError
from edgekit.packages import PackageError

_PACKING_S = 1800.0


async def pack(run: JobRun, registry: Registry) -> str:
    """The merged model as a registered package; returns name@version. Raises FederationError."""
    row, folder = run.row, run.folder
    entry = await registry.resolve(row.job.model)
    if entry is None:
        raise FederationError(f"{row.job.model} is not registered any more")
    figures = next(
        (one.record.figures for one in await run.store.rounds(row.id) if one.record.figures is not None), None
    )
    name, _, base_version = row.job.model.partition("@")
    suffix = f"-{row.name}"[:24]
    merged = folder / "merged.safetensors"
    try:
        await asyncio.to_thread(lambda: atomic.write_file(merged, tensors.save(run.progress.merged())))
    except FederatedError as error:
        raise FederationError(f"there is no merged model: {error}") from None
    order = Order(
        base=str(await registry.materialise(entry)),
        plan=str(folder / PLAN_FOLDER),
        tensors=str(merged),
        out=str(folder / "packed"),
        name=run.definition.result or name,
        version=run.definition.version or base_version[: 32 - len(suffix)] + suffix,
        job=MergedJob(
            name=row.name,
            id=row.id,
            service=row.job.service,
            plan=msgspec.Raw(row.job.plan.encode()),
            local=row.job.local,
            secure=row.job.secure,
            sums=run.progress.version,
            least=row.job.least,
            rosters=row.job.rosters,
            upper=row.job.upper.id if row.job.upper is not None else "",
        ),
        state=run.progress.digest.hex(),
        personal=run.progress.rules.strategy.layout.personal,
        figures=figures,
        labels=row.job.labels,
    )
    merged_model = await ask("cloudd.federation.merging", order, Merged, _PACKING_S)
    if merged_model.error:
        raise FederationError(f"the merged model cannot be used: {merged_model.error}")
    try:
        added = await registry.add(Path(merged_model.directory))
    except (RegistryError, PackageError) as error:
        raise FederationError(f"the merged model cannot be registered: {error}") from None
    return f"{added.name}@{added.version}"
