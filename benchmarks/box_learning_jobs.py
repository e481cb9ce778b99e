"""Learning jobs of a detector for benchmarks.box_learning: a device with boards in its sample store, and its rungs.

What learns and judges is `edged.train`, from the order to the sealed candidate; the rung `cloud` is that and
`cloudd.retraining`, with files that are handed over on this disk instead of the network between them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.box_learning_boards import OVERLAP, PIPELINE, TILE, Board
from cloudd.retraining import working
from cloudd.retraining.course import Pausing
from cloudd.retraining.folders import REQUEST as ASKED
from cloudd.retraining.folders import RESULT
from cloudd.retraining.order import WorkOrder
from edged.samples.opening import open_store
from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.train import job
from edged.train.box_lessons import load_box_lessons
from edged.train.lessons import open_samples
from edged.train.pace import Pace
from edged.train.retraining_client import FETCHED, FOLDER, REQUEST
from edged.train.retraining_rows import rows_of
from edgekit.gates.limits import Limits
from edgekit.learning.budget import Budget, unlimited
from edgekit.learning.limits import JudgingLimits
from edgekit.messages.learning import TrainDone, TrainOrder, TrainRung, TrainStopped
from edgekit.messages.retraining import RetrainRequest
from edgekit.packages import Package, open_package
from edgekit.services import Samples, parse_service
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Truth, match
from edgekit.vision.detection.tiling import TiledDetector

SERVICE, DEVICE, LESSONS = "boards", "DEVICE-A", "lessons"
DEFINITION = f"""
name = "{SERVICE}"
model = "bare-boards"
task = "detection"
[pipeline.tiles]
width = {TILE}
height = {TILE}
overlap = {OVERLAP}
worst = ["short", "open", "mousebite", "spur", "pin-hole", "copper"]
[samples]
[learning]
rungs = ["last-blocks", "full", "cloud"]
"""
LIMITS = JudgingLimits(old=Limits(items=80, drop=0.05, class_drop=0.05))
"""For the few boards that judge: by default 500 boxes do, and one point is allowed."""
OVERLAPS = np.array([0.5])


@dataclass(frozen=True)
class Seen:
    """What a detector reports of the boards that judge."""

    recall: dict[str, float]  # of each kind of defect, by the board's own boxes
    false_alarms: float  # a board

    def old(self, new: str) -> float:
        """Mean over the other kinds."""
        return float(np.mean([share for label, share in self.recall.items() if label != new]))


def seen(package: Package, boards: Sequence[Board], kinds: Sequence[str]) -> Seen:
    """As the service looks at boards: with its tiles, and from the package's own score on."""
    hits, totals, false = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0), 0
    with closing(Detector.load(package)) as model:
        look = TiledDetector(model, PIPELINE)
        for board in boards:
            said = look.detect(board.data)
            told = said.detections.above(said.report)
            labels = np.array([kinds.index(package.labels[at]) for at in told.labels.tolist()], np.int32)
            told = dataclasses.replace(told, labels=labels)
            sides = np.array([(one.left, one.top, one.right, one.bottom) for one in board.boxes], np.float32)
            truth = Truth(sides.reshape(-1, 4), np.array([kinds.index(one.label) for one in board.boxes], np.int64))
            taken = match(told, truth, OVERLAPS)[0]
            false += int((taken < 0).sum())
            for row, one in enumerate(board.boxes):
                totals[one.label] += 1
                hits[one.label] += int((taken == row).any())
    return Seen({kind: hits[kind] / totals[kind] for kind in kinds if totals[kind]}, false / len(boards))


class Device:
    """A state directory below `root` with labelled boards in its store, and a base that learns from them."""

    def __init__(self, root: Path, base: Package, boards: Iterable[tuple[Board, bool]]) -> None:
        """`boards`: each as it arrived, and whether it shows the new kind of defect, so that it is of the batch."""
        self._root, self._base = root, base
        store = open_store(root / "state", DEVICE, lambda service: Samples(keep="all"), 0, lambda event: None, _wall)
        with closing(store):
            for number, (board, new) in enumerate(boards):
                label = Label(boxes=board.boxes)
                record = LabelRecord(label=label, kind="operator", author="anna", at=2000.0 if new else 1000.0)
                sample = NewSample(
                    service=SERVICE, source="asked", captured_at=1.7e9 + number, group=board.name, part=board.part
                )
                store.add(sample, board.data, record)
            store.versions.make(LESSONS, Filter(service=SERVICE), "boxes")

    def climb(self, rung: TrainRung, seed: int, cloud_seconds: float) -> TrainDone | str:
        """The candidate of one rung, or why there is none. `cloud_seconds`: of computing that cloudd may plan for."""
        scratch = self._root / rung
        order = TrainOrder(
            state_dir=str(self._root / "state"),
            device_id=DEVICE,
            service=SERVICE,
            definition=DEFINITION,
            job=1,
            rung=rung,
            base=str(self._base.root),
            base_ref=self._base.ref,
            name=f"bare-boards.{SERVICE}",
            version="1-1",
            dataset=LESSONS,
            scratch=str(scratch),
            limits=LIMITS,
            seed=seed,
        )
        scratch.mkdir()
        ended = self._run(order)
        if isinstance(ended, TrainStopped) and ended.kind == "waiting":  # it has joined no cloudd
            if reason := self._cloud(scratch / FOLDER, cloud_seconds):
                return f"cloudd says: {reason}"
            ended = self._run(order)
        return ended if isinstance(ended, TrainDone) else ended.reason

    def _run(self, order: TrainOrder) -> TrainDone | TrainStopped:
        pace = Pace(Budget(), unlimited, time.monotonic, time.sleep, lambda progress: None)
        return job.run(order, pace, time.monotonic, unlimited)

    def _cloud(self, folder: Path, seconds: float) -> str:
        """What lies at cloudd once everything has come, the work there, and what is fetched. Why nothing is, or ""."""
        body = (folder / REQUEST).read_bytes()
        request = msgspec.json.decode(body, type=RetrainRequest)
        place, files = self._root / "cloudd" / "job", self._root / "cloudd" / "files"
        for one in (place, files):
            one.mkdir(parents=True)
        (place / ASKED).write_bytes(body)
        for entry in request.network:
            shutil.copyfile(folder / "network" / entry.path, files / entry.sha256)
        with closing(open_samples(self._root / "state", DEVICE)) as store:
            lessons = load_box_lessons(store, LESSONS, parse_service(DEFINITION, "benchmark"), self._base.labels, 20)
            for part in (lessons.learn, lessons.choose):
                rows = rows_of(lessons, part, request.input)
                for row in range(len(rows)):
                    data = rows.png(row)
                    (files / hashlib.sha256(data).hexdigest()).write_bytes(data)
        order = WorkOrder(folder=str(place), files=str(files), seconds=seconds)
        ended = working.run(order, Pausing(), lambda text, done, total: None)
        if ended.kind != "done":
            return ended.reason
        shutil.copytree(place / RESULT, folder / FETCHED)
        return ""


def candidate(done: TrainDone) -> Package:
    """The sealed package of a job."""
    return open_package(Path(done.directory))


def _wall() -> float:
    return 1.8e9
