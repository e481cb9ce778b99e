"""Where jobs are done: the dataset version, the order, the one process, and the package that comes out of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, get_args

from edged.api import ApiError
from edged.desired import Entry
from edged.learning.parts import Cloudd, Parts
from edged.learning.place import Work
from edged.learning.process import Died, LastWord, Training
from edged.learning.settings import budget_of, judging_limits, label_kind
from edged.plan import service_of
from edged.samples.bodies import MakeBody
from edgekit.learning.triggers import NewClass
from edgekit.messages.learning import TrainDone, TrainOrder, TrainProgress, TrainRung, TrainStopped
from edgekit.packages import PackageError, open_package
from edgekit.services import Learning

log = logging.getLogger("edged.learning")

STOP_S = 10.0
"""For a process to save what it has. systemd's TimeoutStopSec=30 leaves room for the worker."""


class ModelFacts(NamedTuple):
    """Of an installed package."""

    labels: tuple[str, ...] = ()
    digest: str = ""


class Workshop:
    """Belongs to the event loop of the desk, whose lock is held whenever something here is called and awaited."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._root = parts.state_dir / "learning" / "jobs"
        self._training: Training | None = None
        self._facts: dict[str, ModelFacts] = {}

    # --- the process --------------------------------------------------------------------------------------------------

    @property
    def occupied_by(self) -> str:
        """The service whose job is being done, "" for none."""
        return self._training.service if self._training is not None else ""

    def progress(self, service: str) -> TrainProgress | None:
        """How far the job of this service is."""
        training = self._training
        return training.progress if training is not None and training.service == service else None

    def outcome(self, service: str) -> LastWord | Died | None:
        """How the job of this service ended; None while it works, or if it does not."""
        training = self._training
        return training.outcome if training is not None and training.service == service else None

    def ended(self) -> asyncio.Task[LastWord | Died] | None:
        """Done when the process has ended; None without one."""
        return self._training.ended if self._training is not None else None

    def clear(self, service: str) -> None:
        """Its outcome was taken."""
        if self.occupied_by == service:
            self._training = None

    async def begin(self, work: Work, entry: Entry, learning: Learning) -> TrainStopped | None:
        """Start the process, or go on with what one before it left. Why it cannot be started, None if it was."""
        packages = self._parts.models.installed()
        if work.base not in packages:
            return TrainStopped(kind="failed", reason=f"{work.base} is not installed any more", resumable=False)
        try:
            await self._dataset(entry, work)
            await asyncio.to_thread(self._root.mkdir, mode=0o700, parents=True, exist_ok=True)
            order = self._order(work, entry, learning, packages[work.base])
            self._training = await Training.start(order, self._parts.empty, self._parts.command())
        except ApiError as error:
            if error.status == 400:  # there are no such labels; everything else is the store's or the disk's trouble
                return TrainStopped(kind="refused", reason=str(error), resumable=False)
            return TrainStopped(kind="failed", reason=str(error), resumable=False)
        except OSError as error:
            return TrainStopped(kind="failed", reason=f"its process cannot be started: {error}", resumable=False)
        return None

    async def stop(self, service: str) -> LastWord | Died | None:
        """End the job of this service and wait: it saves what it has. How it ended, None if there was none."""
        training = self._training
        if training is None or training.service != service:
            return None
        word = await training.stop(STOP_S)
        self._training = None
        return word

    async def leave_cloudd(self, work: Work, forget: bool = False) -> None:
        """Tell cloudd that a job there is over; `forget`: that none of its pictures may stay. It may not hear of it."""
        cloudd = self._parts.cloudd()
        if work.rung == "cloud" and cloudd.identity:
            from edged.train.retraining_client import close_job  # the supervisor's memory is counted

            await close_job(self.scratch(work), cloudd.url, cloudd.identity, forget)

    async def close(self) -> None:
        """End whatever job is being done; the next start goes on with it."""
        if self._training is not None:
            await self.stop(self._training.service)

    async def _dataset(self, entry: Entry, work: Work) -> None:
        """Fix what is learned from, unless an earlier start of this job did. Raises ApiError."""
        if any(version.name == work.dataset for version in await self._parts.samples.versions()):
            return
        service = service_of(entry)
        kind = label_kind(service) if service is not None else "labels"
        await self._parts.samples.make(MakeBody(name=work.dataset, service=entry.name, kind=kind))

    def _order(self, work: Work, entry: Entry, learning: Learning, base: Path) -> TrainOrder:
        assert work.rung in get_args(TrainRung)
        cloudd = self._parts.cloudd() if work.rung == "cloud" else Cloudd("", "")
        return TrainOrder(
            state_dir=str(self._parts.state_dir),
            device_id=self._parts.device_id(),
            service=entry.name,
            definition=entry.text,
            job=work.number,
            rung=work.rung,  # type: ignore[arg-type] # checked above
            base=str(base),
            base_ref=work.base,
            name=work.name,
            version=work.version,
            dataset=work.dataset,
            earlier_before=work.earlier_before,
            new_class=learning.triggers.new_class or NewClass().labels,
            scratch=str(self.scratch(work)),
            seed=work.number,
            threads=self._parts.threads,
            budget=budget_of(learning),
            limits=judging_limits(learning),
            max_seconds=learning.hours * 3600.0,
            identity=cloudd.identity,
            url=cloudd.url,
        )

    # --- packages -----------------------------------------------------------------------------------------------------

    async def facts(self, ref: str) -> ModelFacts:
        """Labels and digest of an installed package; nothing of one that is not there or cannot be read."""
        if ref not in self._facts:
            path = self._parts.models.installed().get(ref)
            if path is None:
                return ModelFacts()
            try:
                package = await asyncio.to_thread(open_package, path, verify=False)
            except (PackageError, OSError):
                return ModelFacts()
            self._facts[ref] = ModelFacts(tuple(package.labels), package.digest)
        return self._facts[ref]

    async def install(self, done: TrainDone, within: Path | None) -> None:
        """Copy a candidate to the other models. Raises PackageError or OSError.

        `within`: where its directory must lie. One that is installed already is fine.
        """
        installed = await self.facts(done.ref)
        if not installed.digest or installed.digest != done.digest:
            await asyncio.to_thread(self._install, done, within)

    def _install(self, done: TrainDone, within: Path | None) -> None:
        directory = Path(done.directory)
        if within is not None and not directory.resolve().is_relative_to(within.resolve()):
            raise PackageError(f"{done.directory} lies outside of the job's directory")
        package = open_package(directory)
        if package.ref != done.ref or package.digest != done.digest:
            raise PackageError(f"{package.ref} in {directory} is not the candidate {done.ref} that was announced")
        self._parts.models.add(directory)

    async def remove(self, ref: str) -> bool:
        """Remove a package that nothing runs any more; False while something does, or the disk does not let go."""
        standing = self._parts.standing
        used = {one for choice in standing.planned.values() for one in (choice.ref, choice.head, choice.shadow)}
        used |= {choice.ref for name in standing.planned if (choice := standing.running(name)) is not None}
        if ref in used | self._parts.served():
            return False
        self._facts.pop(ref, None)
        if ref not in self._parts.models.refs():
            return True
        try:
            await asyncio.to_thread(self._parts.models.remove, ref)
        except PackageError:  # somebody else removed it in this moment
            return True
        except OSError as error:
            log.warning("The package %s cannot be removed for now: %s.", ref, error)
            return False
        return True

    # --- tidying ------------------------------------------------------------------------------------------------------

    def scratch(self, work: Work) -> Path:
        """The directory of a job."""
        return self._root / work.dataset

    async def sweep(self, works: Collection[Work]) -> None:
        """Remove the directories of jobs that are over."""
        keep = {self.scratch(work) for work in works}

        def sweep() -> None:
            for path in self._root.iterdir() if self._root.is_dir() else []:
                if path not in keep:
                    shutil.rmtree(path, ignore_errors=True)

        await asyncio.to_thread(sweep)

    async def delete_dataset(self, name: str) -> bool:
        """Forget a dataset version, so that its samples may be evicted; False if the store cannot now."""
        with contextlib.suppress(ApiError):
            if any(version.name == name for version in await self._parts.samples.versions()):
                await self._parts.samples.delete_version(name)
            return True
        return False
