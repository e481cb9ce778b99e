"""What the child process does: one job from here on, or the candidate at its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged.collab.sealing import Kek
from edged.federation.book import AUDIT, Book
from edged.federation.chain import Chain
from edged.federation.cloud import HttpCloud
from edged.federation.descent import descends
from edged.federation.files import JobFolder
from edged.federation.head_source import HeadSource
from edged.federation.local import LocalTrainer
from edged.federation.machine import teller
from edged.federation.notes import JobNote
from edged.federation.opening import is_there
from edged.federation.order import FederationOrder, dataset_name
from edged.federation.participant import Participant, Places
from edged.federation.shared import Shared
from edged.federation.sitting import Signing
from edged.federation.updates import Source, SourceError
from edged.hardware.host import RealHost
from edged.learning.settings import judging_limits, label_kind
from edged.link.http import open_session
from edged.samples.reading import Filter
from edged.samples.store import SampleStore
from edged.samples.versions import VersionError
from edged.train.box_lessons import BoxLessons, load_box_lessons
from edged.train.lessons import LessonError, Lessons, load_lessons, open_samples
from edged.train.pace import Pace, Workplace
from edged.train.sensors import machine
from edged.train.tile_lessons import load_tile_lessons
from edgekit.identity import client_context, load_key
from edgekit.learning.budget import Budget, Sensors, unlimited
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.trial import Expected
from edgekit.messages.federation import FederatedJob, Over
from edgekit.messages.learning import TrainDone
from edgekit.packages import Package, PackageError, open_package
from edgekit.secagg.roster import node_of
from edgekit.secagg.signatures import signer
from edgekit.services import Service, parse_service

T = TypeVar("T")

JOBS = "jobs"
"""Below the federation's folder."""


def signing(identity: Path, device_id: str) -> Signing:
    """Who this device is, by the key of its identity. Raises IdentityError, OSError."""
    key = load_key(identity / "key.pem")
    return Signing(node_of(key.public_key()), device_id, signer(key))


@contextlib.contextmanager
def places(state_dir: Path, device_id: str, job: str) -> Iterator[Places]:
    """The files of one job. Raises StoreError, SealError, ChainError, OSError."""
    environment = os.environ.get("CREDENTIALS_DIRECTORY")
    kek = Kek.open(state_dir / "keys" / "kek", Path(environment) if environment else None)
    with closing(Book(state_dir)) as book, closing(Chain(book.folder / AUDIT)) as chain:
        folder = JobFolder(
            book.folder / JOBS,
            job,
            lambda data, name: kek.seal(data, device_id, name),
            lambda data, name: kek.unseal(data, device_id, name),
        )
        yield Places(folder, book, chain)


async def take_part(order: FederationOrder, at: Places, stop: asyncio.Event) -> Over | None:
    """The job until it is over, or (None) until `stop` is set. Raises as `Participant.run` does."""
    identity = Path(order.identity)
    context = client_context(
        identity / "authority.pem", identity / "certificate.pem", identity / "key.pem", time.time()
    )
    async with open_session(context) as session:
        with contextlib.ExitStack() as opened:
            participant = Participant(
                order.job,
                HttpCloud(session, order.url),
                lambda job, folder, shared: _source(order, job, folder, shared, opened, at.book),
                identity=signing(identity, order.device_id),
                policy=order.policy,
                places=at,
                tell=teller(RealHost(), at.book.folder),
            )
            return await unless(stop, participant.run())


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives, or None if `stop` was set before: then it is cancelled."""
    running, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return None
    return running.result()


def conclude(order: FederationOrder, at: Places, pace: Pace) -> TrainDone:
    """The candidate that the shared model makes here, judged on pictures that were held out of all rounds.

    Raises Refusal, SourceError, and as `edged.train.candidate.finish` does.
    """
    from edged.train.candidate import Made, finish  # needs the package onnx, and taking part does not

    service, base = _subject(order)
    job, shared = _kept(at.folder)
    with closing(open_samples(Path(order.state_dir), order.device_id)) as store:
        lessons = _lessons(order, service, base, shared, store)
        trainer = _trainer(shared, at.folder, lessons, base, threads=order.threads)
        scratch = Path(order.scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700, parents=True)
        note = at.book.job(order.job)
        notes = [*lessons.notes, _story(job, shared, note)]
        made = Made(
            base=base,
            service=service,
            name=order.name,
            version=order.version,
            job=0,
            rung="federated",
            dataset=dataset_name(order.job, service.name),
            logits=trainer.logits,
            write=lambda folder: trainer.write_model(shared.state, folder),
            recipe=None,
            scene=0,
            notes=notes,
        )
        sensors = machine(RealHost())
        place = Workplace(scratch, order.threads, pace, time.monotonic, sensors)
        limits = judging_limits(service.learning) if service.learning is not None else JudgingLimits()
        package, verdict = finish(made, lessons, limits, None, place)
    hard = service.hard_samples
    return TrainDone(
        directory=str(package.root),
        ref=package.ref,
        digest=package.digest,
        seconds=pace.seconds,
        verdict=verdict,
        expected=Expected(differing=hard.risk if hard.asks and hard.mode == "risk" else None),
        notes=notes,
    )


def _story(job: FederatedJob, shared: Shared, note: JobNote | None) -> str:
    took = note.contributed if note is not None else 0
    how = "under secure aggregation" if job.secure else "without masks"
    return (
        f"learned with other devices in the job {job.id[:12]} {how}: {shared.state.version} sums, of which {took} hold "
        f"this device's update; state {shared.digest().hex()[:16]}"
    )


def _source(
    order: FederationOrder,
    job: FederatedJob,
    folder: JobFolder,
    shared: Shared,
    opened: contextlib.ExitStack,
    book: Book,
) -> Source:
    """In a thread: open the samples and fix those that the job learns from."""
    service, base = _subject(order)
    is_head, same = shared.rules.head is not None, (base.ref, base.digest) == (job.model, job.package)
    if service.name != job.service or not (same or (is_head and descends(base.root, job.model, job.package))):
        raise SourceError(f"the job is for {job.service} with {job.model}; here {service.name} runs {base.ref}")
    if is_head and book.leaving(service.name):
        return HeadSource(shared, folder, None, base.manifest.input, threads=order.threads)
    store = opened.enter_context(closing(open_samples(Path(order.state_dir), order.device_id)))
    name = dataset_name(job.id, service.name)
    try:
        if store.versions.find(name) is None:
            store.versions.make(name, Filter(service=service.name), label_kind(service))
    except (VersionError, sqlite3.Error) as error:
        raise SourceError(f"no samples to learn from: {error}") from None
    lessons = _lessons(order, service, base, shared, store, tiles_judge=True)
    if len(lessons.learn.pictures) + len(lessons.judge.pictures) < order.policy.min_samples:
        raise SourceError(f"{service.name} has fewer labelled samples than federation.min_samples")
    return _trainer(
        shared, folder, lessons, base, threads=order.threads, budget=order.budget, sensors=machine(RealHost())
    )


def _trainer(
    shared: Shared,
    folder: JobFolder,
    lessons: Lessons | BoxLessons,
    base: Package,
    *,
    threads: int,
    budget: Budget | None = None,
    sensors: Sensors = unlimited,
) -> LocalTrainer | HeadSource:
    spec = base.manifest.input
    if shared.rules.head is None:
        return LocalTrainer(
            shared,
            folder,
            lessons,
            spec,
            detection=base.manifest.detection,
            threads=threads,
            budget=budget,
            sensors=sensors,
        )
    if isinstance(lessons, BoxLessons):
        raise SourceError("a detector has no last layer that could be made in one round")
    return HeadSource(shared, folder, lessons, spec, threads=threads, budget=budget, sensors=sensors)


def _lessons(
    order: FederationOrder,
    service: Service,
    base: Package,
    shared: Shared,
    store: SampleStore,
    tiles_judge: bool = False,
) -> Lessons | BoxLessons:
    """A head may have labels that the model here does not know yet.

    `tiles_judge`: in a round tiles judge one by one; a candidate is judged by whole pictures.
    """
    labels = shared.job.labels if shared.rules.head is not None else tuple(base.labels)
    if labels[: len(base.labels)] != tuple(base.labels):
        raise SourceError("the labels of the head do not begin with those of the model that this service runs")
    name = dataset_name(order.job, service.name)
    try:
        if service.task == "detection":
            return replace(load_box_lessons(store, name, service, labels), known=len(base.labels))
        if service.pipeline is None or service.pipeline.tiles is None:
            return replace(load_lessons(store, name, service, labels), known=len(base.labels))
        found = load_tile_lessons(store, name, service, labels, tiles_judge=tiles_judge)
        return replace(found, known=len(base.labels))
    except (LessonError, sqlite3.Error) as error:
        raise SourceError(f"no samples to learn from: {error}") from None


def _subject(order: FederationOrder) -> tuple[Service, Package]:
    try:
        return parse_service(order.service, "the order"), open_package(Path(order.base))
    except (ValueError, OSError, PackageError) as error:
        raise SourceError(f"the service or its model cannot be used: {error}") from None


def _kept(folder: JobFolder) -> tuple[FederatedJob, Shared]:
    """The job and its last state, as they lie here."""
    try:
        job = msgspec.json.decode((folder.path / "job.json").read_bytes(), type=FederatedJob)
    except (OSError, msgspec.MsgspecError) as error:
        raise SourceError(f"the job's files are gone: {error}") from None
    if not all(is_there(entry, folder.files / entry.path) for entry in job.files):
        raise SourceError("the job's files are gone")
    return job, Shared(job, folder)
