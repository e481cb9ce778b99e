"""Rung `cloud`: cloudd trains a larger network on the labels, and that one teaches the service's own.

The device sends its own network (with a head that knows the new classes) and the pictures that teach and choose, as the
model sees them: cut to the region of interest or the tiles, scaled to the model's input, as PNG, with their labels or
boxes. Those that judge never leave. Each picture is on the device's record of what left before its first byte goes.
cloudd gives weights back; graph, labels and input stay the device's own, so that nothing of cloudd's is executed here.
Then the candidate is judged as every other.

Everything lies in the job's folder, and every step can be done again. While cloudd works no process waits for it: this
one ends (`Waiting`), and the supervisor starts it again from time to time.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edged.collab.ledger import Taught, record_taught
from edged.link.download import check_room
from edged.link.errors import LinkError, Refused
from edged.store import StoreError
from edged.train import head, retraining_rows
from edged.train.box_lessons import BoxLessons
from edged.train.detector import DetectorNetwork
from edged.train.lessons import LessonError, Lessons
from edged.train.network import Network
from edged.train.pace import Workplace
from edged.train.retraining_client import FETCHED, FOLDER, REQUEST, Client, CloudFailed, Waiting, at_work, connected
from edged.train.retraining_rows import Rows, rows_of
from edgekit import atomic
from edgekit.faults import crash_point
from edgekit.graphs.errors import NetworkError
from edgekit.identity import fingerprint, parse_certificate
from edgekit.messages import FileEntry
from edgekit.messages.learning import TrainOrder
from edgekit.messages.retraining import (
    MAX_PICTURES,
    MAX_REQUEST,
    Lacking,
    RetrainRequest,
    RetrainState,
    TaughtPicture,
    fault,
    job_of,
)
from edgekit.packages import MANIFEST_NAME, InputSpec, Package, PackageError, open_package
from edgekit.packages.manifest import check_path
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, TrainingError, read_weights

RECORD = "retrained.json"
"""What cloudd says about its work, in the package that it makes and in the candidate."""
NETWORK = "network"
PLACES = "places.json"
"""SHA-256 of each picture that is sent -> where it is found again."""
RATE = 250_000
"""Bytes a second: two megabits, which leaves room for the questions of the line on the slowest link in use."""
CHUNK = 1 << 17
STALLS = 3
"""Parts of a file that may be lost on the way."""
_MAX_RECORD = 1 << 20
_MAX_FILES = 16


@dataclass(frozen=True)
class Retrained:
    """What came back. `write` puts MODEL_FILE and WEIGHTS_FILE into a folder, and RECORD beside them."""

    write: Callable[[Path], None]
    notes: tuple[str, ...]


def retrained(
    order: TrainOrder,
    network: Network | DetectorNetwork,
    base: Package,
    lessons: Lessons | BoxLessons,
    at: Workplace,
    rate: float = RATE,
) -> Retrained:
    """Do what there is to do now. `rate`: bytes a second that are sent at most.

    A classifier's `network` learns Lessons and a detector's BoxLessons. Raises Waiting while cloudd works or cannot be
    reached, LessonError or NetworkError where there is nothing that it could do, CloudFailed, and as `head.relearned`.
    """
    folder = at.folder / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    body = _request(order, network, base, lessons, folder, at)
    request = msgspec.json.decode(body, type=RetrainRequest)
    if not (folder / FETCHED).is_dir():
        asyncio.run(_through(order, request, body, lessons, folder, at, rate))
    package = _opened(folder / FETCHED, request)
    student = _student(request, network, onnx.load(str(folder / NETWORK / MODEL_FILE)))
    try:
        learned = student.with_weights(dict(read_weights(package.path(WEIGHTS_FILE))))
    except (TrainingError, NetworkError) as error:
        raise CloudFailed(f"the weights from cloudd do not fit: {error}") from None

    def write(target: Path) -> None:
        learned.save(target)
        shutil.copyfile(package.path(RECORD), target / RECORD)

    return Retrained(write, (f"{len(request.pictures)} pictures went to cloudd: {package.manifest.description}",))


# --- what is asked for ------------------------------------------------------------------------------------------------


def _request(
    order: TrainOrder,
    network: Network | DetectorNetwork,
    base: Package,
    lessons: Lessons | BoxLessons,
    folder: Path,
    at: Workplace,
) -> bytes:
    """The request of this job: made once, so that every start asks for the same."""
    if (folder / REQUEST).exists():
        return (folder / REQUEST).read_bytes()
    spec = base.manifest.input
    learn, choose = _rows(lessons, spec)
    retraining_rows.check(lessons.classes, learn, choose)
    student = _beginning(network, lessons, spec, at)
    shutil.rmtree(folder / NETWORK, ignore_errors=True)
    (folder / NETWORK).mkdir()
    student.save(folder / NETWORK)
    pictures, places = _prepared(learn, choose, at)
    request = RetrainRequest(
        service=order.service,
        base=base.ref,
        base_digest=base.digest,
        name=order.name,
        version=order.version,
        dataset=lessons.digest,
        labels=tuple(lessons.classes),
        input=spec,
        image=student.image,
        logits=student.logits if isinstance(student, Network) else "",
        detection=None if isinstance(student, Network) else base.manifest.detection,
        network=tuple(_entry(folder / NETWORK / name) for name in (MODEL_FILE, WEIGHTS_FILE)),
        pictures=tuple(pictures),
        seed=order.seed,
    )
    body = msgspec.json.encode(request)
    if reason := fault(request) or (f"the request has {len(body)} bytes" if len(body) > MAX_REQUEST else ""):
        raise LessonError(f"cloudd cannot be asked: {reason}")
    atomic.write_file(folder / PLACES, msgspec.json.encode(places))
    atomic.write_file(folder / REQUEST, body)
    crash_point("train.requested")
    return body


def _beginning(
    network: Network | DetectorNetwork, lessons: Lessons | BoxLessons, spec: InputSpec, at: Workplace
) -> Network | DetectorNetwork:
    """The network that cloudd is to teach: the service's own, with a head that knows the new classes."""
    if not lessons.new:
        return network
    if isinstance(network, DetectorNetwork):
        return network.with_classes(len(lessons.classes))
    assert isinstance(lessons, Lessons), "a classifier learns labels"
    return head.relearned(network, lessons, spec, at, widen=False)[0]


def _student(
    request: RetrainRequest, network: Network | DetectorNetwork, model: onnx.ModelProto
) -> Network | DetectorNetwork:
    """What was sent, read again."""
    if isinstance(network, DetectorNetwork):
        return replace(network, model=model)
    return Network(model, request.image, request.logits)


def _rows(lessons: Lessons | BoxLessons, spec: InputSpec) -> tuple[Rows, Rows]:
    """Those that teach and those that choose."""
    return rows_of(lessons, lessons.learn, spec), rows_of(lessons, lessons.choose, spec)


def _prepared(learn: Rows, choose: Rows, at: Workplace) -> tuple[list[TaughtPicture], dict[str, tuple[bool, int]]]:
    """What is sent of the pictures, and of each whether it chooses and its row in that part of the lessons."""
    total = len(learn) + len(choose)
    share = min(1.0, MAX_PICTURES / max(1, total))
    found: list[TaughtPicture] = []
    places: dict[str, tuple[bool, int]] = {}
    for rows in (learn, choose):
        chooses = rows is choose
        for row in np.linspace(0, len(rows) - 1, int(share * len(rows)), dtype=int).tolist():
            data = rows.png(row)
            sha256 = hashlib.sha256(data).hexdigest()
            label, boxes = rows.shown(row)
            found.append(TaughtPicture(sha256=sha256, size=len(data), label=label, boxes=boxes, chooses=chooses))
            places[sha256] = chooses, row
            at.pace.turn("reading", len(found), total)
    return found, places


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(path=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


# --- cloudd -----------------------------------------------------------------------------------------------------------


async def _through(
    order: TrainOrder,
    request: RetrainRequest,
    body: bytes,
    lessons: Lessons | BoxLessons,
    folder: Path,
    at: Workplace,
    rate: float,
) -> None:
    """From the question to the fetched package, as far as it goes now."""
    job = job_of(body)
    try:
        async with connected(order.url, order.identity) as client:
            state = await client.begin(body)
            if state.stage == "receiving":
                await _send(client, job, _Sender(order, request, lessons, folder), at, rate)
                crash_point("train.sent")
                state = await client.state(job)
            if state.stage in ("receiving", "waiting", "training"):
                raise Waiting(at_work(state))
            if state.stage == "refused":
                raise LessonError(f"cloudd says: {state.text}")
            if state.stage != "done":
                raise CloudFailed(f"cloudd says: {state.text or state.stage}")
            await _fetch(client, job, state, folder, at)
    except Refused as error:
        if error.status in (401, 403):  # a person has to do something about that, and may
            raise Waiting(error.sentence) from None
        if error.status == 404:
            raise CloudFailed("this cloudd does not retrain models, or has forgotten the job") from None
        raise CloudFailed(f"cloudd refuses it: {error}") from None
    except LinkError as error:
        raise Waiting(f"cloudd cannot be reached: {error}") from None


class _Sender:
    """The bytes of every file of a job, and the record of the pictures among them."""

    def __init__(self, order: TrainOrder, request: RetrainRequest, lessons: Lessons | BoxLessons, folder: Path) -> None:
        self._order, self._request = order, request
        self._network = {one.sha256: folder / NETWORK / one.path for one in request.network}
        kind = dict[str, tuple[bool, int]]
        self._places = msgspec.json.decode((folder / PLACES).read_bytes(), type=kind)
        self._rows = dict(zip((False, True), _rows(lessons, request.input), strict=True))

    def data(self, sha256: str) -> bytes:
        """Raises CloudFailed for what is not of this job or has changed, and as the pictures do."""
        if sha256 in self._network:
            return self._network[sha256].read_bytes()
        chooses, row = self._places.get(sha256, (False, -1))
        data = self._rows[chooses].png(row) if 0 <= row < len(self._rows[chooses]) else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CloudFailed("a picture of the job is gone, or is prepared otherwise than when the job began")
        return data

    def record(self, lacking: Sequence[Lacking]) -> None:
        """Note durably which pictures are about to leave. Raises Waiting where that cannot be, so that none does."""
        sizes = self._request.files
        pictures = [
            Taught(self._sample(one.sha256), sizes[one.sha256], one.sha256)
            for one in lacking
            if one.sha256 in self._places
        ]
        authority = (Path(self._order.identity) / "authority.pem").read_text("ascii", "replace")
        cloudd = fingerprint(parse_certificate(authority))
        try:
            record_taught(Path(self._order.state_dir), self._order.service, cloudd, pictures, time.time())
        except (StoreError, sqlite3.Error) as error:
            raise Waiting(f"nothing leaves, because the record of what left cannot be written: {error}") from None

    def _sample(self, sha256: str) -> str:
        chooses, row = self._places[sha256]
        files = self._rows[chooses].files
        if not 0 <= row < len(files):
            raise CloudFailed("a picture of the job is gone")
        return files[row]


async def _send(client: Client, job: str, sender: _Sender, at: Workplace, rate: float) -> None:
    """Everything that cloudd lacks, no faster than `rate` bytes a second."""
    total = left = 0
    while (missing := await client.missing(job)).files:
        if left and missing.total >= left:
            raise CloudFailed("cloudd does not keep what it is sent")
        total, left = max(total, missing.total), missing.total
        sender.record(missing.files)
        crash_point("train.recorded")
        for number, one in enumerate(missing.files):
            data, have, stalls = sender.data(one.sha256), one.have, 0
            while have < len(data):
                part, started = data[have : have + CHUNK], at.clock()
                stored = await client.put(job, one.sha256, have, part)
                stalls += stored.have <= have  # what it kept was damaged, or lost
                if stalls > STALLS or stored.have > len(data):
                    raise CloudFailed("cloudd does not keep what it is sent")
                at.pace.rest(max(0.0, len(part) / rate - (at.clock() - started)))
                have = stored.have
                crash_point("train.part")
                at.pace.turn("sending", total - missing.total + number + (have == len(data)), total)


async def _fetch(client: Client, job: str, state: RetrainState, folder: Path, at: Workplace) -> None:
    """The package, whole or not at all; its files one after another."""
    if not 0 < len(state.files) <= _MAX_FILES or not state.digest.isalnum():
        raise CloudFailed(f"cloudd names {len(state.files)} files of a candidate; 1 to {_MAX_FILES} are read")
    check_room(folder, sum(one.size for one in state.files))
    staged = folder / f".{FETCHED}-{state.digest[:16]}"
    for number, one in enumerate(state.files):
        try:
            if one.path != MANIFEST_NAME:
                check_path(one.path)
        except PackageError as error:
            raise CloudFailed(f"cloudd names a file that cannot be: {error}") from None
        if not (staged / one.path).exists():
            await client.fetch(job, one, staged / one.path)
        at.pace.turn("reading", number + 1, len(state.files))
    try:
        whole = open_package(staged).digest == state.digest
    except PackageError as error:
        raise CloudFailed(f"the package from cloudd cannot be used: {error}") from None
    if not whole:
        raise CloudFailed("cloudd sent another package than it announced")
    staged.rename(folder / FETCHED)
    atomic.fsync_dir(folder)
    crash_point("train.fetched")


def _opened(root: Path, request: RetrainRequest) -> Package:
    """The package that came, which must be the one that was asked for. Raises CloudFailed."""
    try:
        package = open_package(root)
    except PackageError as error:
        raise CloudFailed(f"the package from cloudd cannot be used: {error}") from None
    manifest = package.manifest
    if (manifest.name, manifest.version) != (request.name, request.version) or package.labels != list(request.labels):
        raise CloudFailed(f"cloudd sent {package.ref} with other labels or another name than was asked for")
    if not {WEIGHTS_FILE, RECORD} <= manifest.files.keys() or package.sizes[RECORD] > _MAX_RECORD:
        raise CloudFailed(f"the package from cloudd lacks {WEIGHTS_FILE} or {RECORD}, or that is too long")
    return package
