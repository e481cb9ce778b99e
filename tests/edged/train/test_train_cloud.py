"""The rung `cloud` with real processes: the device's job, cloudd and its own job, mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import closing
from pathlib import Path

import boxes_bench
import msgspec
import pytest
from test_train_process import events, start
from train_bench import DEFINITION, OLD, SERVICE, SIDE, accuracy, fill, open_writing, order

from edged.collab import spool_view
from edged.samples.opening import open_store
from edged.samples.reading import Filter
from edged.samples.store import SampleStore
from edged.train.lineage import read_lineage
from edged.train.retraining_rows import rows_of
from edged.train.tile_lessons import load_tile_lessons
from edgekit.autodiff.schedules import Schedule
from edgekit.messages.learning import TrainDone, TrainOrder, TrainStopped
from edgekit.messages.retraining import RetrainRequest, job_of
from edgekit.packages import Package, open_package
from edgekit.services import Samples, parse_service
from edgekit.training import EarlyStopping, Settings
from edgekit.vision.images import decode
from tests.support.cloud import Cloud, FakeDevice

CONTRAST = 0.25
"""Of a scene that the base was not trained on."""
BOX_CONTRAST = 0.3
LEARNING = '[learning]\nrungs = ["head", "cloud"]\n'
HOURS = "0.004"  # 14 seconds of computing


class Edge:
    """A device that has joined, whose store has labelled pictures of a scene in which its model is weak."""

    def __init__(self, root: Path, cloud: Cloud, package: Package) -> None:
        self.state, self.package, self.root = root / "state", package, root
        self.device = FakeDevice(self.state / "identity", "line-1")
        reply = asyncio.run(self.device.enroll(cloud, cloud.invite(name="line-1")))
        assert reply.status == 200
        keep = Samples(keep="all")
        with closing(
            open_store(self.state, self.device.id, lambda name: keep, 0, lambda event: None, time.time)
        ) as store:
            self.fill(store)

    def fill(self, store: SampleStore) -> None:
        fill(store, dict.fromkeys(OLD, 45), contrast=CONTRAST)
        store.versions.make("lessons", Filter(service=SERVICE), "labels")

    def order(self, url: str, name: str, definition: str = DEFINITION + LEARNING) -> TrainOrder:
        identity = self.device.store.current()
        assert identity is not None
        return order(
            self.state,
            self.package,
            self.root / "jobs" / name,
            "cloud",
            device_id=self.device.id,
            definition=definition,
            identity=str(identity.directory),
            url=url,
        )


class BoxEdge(Edge):
    """The same with a detector and boards."""

    def fill(self, store: SampleStore) -> None:
        boxes_bench.fill(store, range(48), boxes_bench.OLD, contrast=BOX_CONTRAST, part="train")
        boxes_bench.fill(store, range(500, 520), boxes_bench.OLD, contrast=BOX_CONTRAST, part="val")
        boxes_bench.fill(store, range(1000, 1030), boxes_bench.OLD, contrast=BOX_CONTRAST, part="test")
        store.versions.make("lessons", Filter(service=SERVICE), "boxes")


def planned(folder: Path, epochs: int) -> None:
    """Fix how long a training at cloudd is, so that no clock has a say."""
    folder.mkdir(parents=True)
    settings = Settings(epochs=epochs, batch=8, schedule=Schedule(peak=4e-3), early_stopping=EarlyStopping(patience=0))
    (folder / "planned.json").write_bytes(msgspec.json.encode(settings))


def until_done(job: TrainOrder, seconds: float = 60.0) -> TrainDone | TrainStopped:
    """As the supervisor: the same order again and again while there is something to wait for."""
    end = time.monotonic() + seconds
    while True:
        last = events(start(job))[-1]
        assert isinstance(last, TrainDone | TrainStopped)
        if not isinstance(last, TrainStopped) or last.kind != "waiting" or time.monotonic() > end:
            return last
        time.sleep(0.3)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path / "cloudd", "--retraining-hours", HOURS)


def test_a_device_that_is_killed_at_every_step_gets_a_better_model_from_cloudd(
    tmp_path: Path, cloud: Cloud, base: Package
) -> None:
    with cloud:
        edge = Edge(tmp_path, cloud, base)
        job = edge.order(cloud.url, "killed")
        for point in ("train.requested", "train.recorded", "train.part:40", "train.sent"):
            process = start(job, point)
            assert not any(isinstance(one, TrainDone | TrainStopped) for one in events(process)), point
            assert process.returncode == -signal.SIGKILL, point
        done: TrainDone | TrainStopped | None = None
        while done is None:
            process = start(job, "train.fetched")
            last = events(process)[-1:]
            if process.returncode == -signal.SIGKILL:
                done = until_done(job)
            else:
                assert isinstance(last[0], TrainStopped) and last[0].kind == "waiting", last
                assert process.returncode == 0 and "cloudd" in last[0].reason
                time.sleep(0.3)
        assert isinstance(done, TrainDone), done
        made = open_package(Path(done.directory))
        assert (made.ref, made.labels) == (f"patterns.{SERVICE}@1-1", list(OLD))
        assert done.verdict.accepted, (done.verdict, done.notes)
        numbers = range(5000, 5030)
        assert accuracy(made, OLD, numbers, CONTRAST) > accuracy(base, OLD, numbers, CONTRAST) + 0.1
        assert "pictures went to cloudd" in done.notes[-1] and "times as large" in done.notes[-1]
        lineage = read_lineage(made)
        assert lineage is not None and lineage.rung == "cloud"
        assert "retrained.json" in made.manifest.files

        # Each picture that teaches or chooses is on record once, as it was sent; none that judges left.
        records = spool_view.left(edge.state, SERVICE, 1000)
        parts = lineage.data.parts
        assert len(records) == parts["learn"].pictures + parts["choose"].pictures
        assert {one.reason for one in records} == {"retraining"}
        assert len({one.sample_id for one in records}) == len(records) and parts["judge"].pictures > 20
        kept = tmp_path / "cloudd" / "retraining" / edge.device.id
        sent = {path.name: path.stat().st_size for path in (kept / "files").iterdir()}
        assert {one.sha256: one.bytes for one in records}.items() <= sent.items()
        assert len(sent) == len(records) + 2
        # It said goodbye: what was computed is gone, the manifest and the pictures stay for the next job.
        (folder,) = (kept / "jobs").iterdir()
        assert msgspec.json.decode((folder / "record.json").read_bytes())["stage"] == "closed"
        assert not (folder / "result").exists() and not (folder / "work").exists()


def test_a_detector_comes_back_better_and_its_boxes_went_with_its_pictures(
    tmp_path: Path, cloud: Cloud, detector: Package
) -> None:
    with cloud:
        edge = BoxEdge(tmp_path, cloud, detector)
        job = edge.order(cloud.url, "boxes", boxes_bench.DEFINITION + LEARNING)
        job = msgspec.structs.replace(job, name=f"boards.{SERVICE}", limits=boxes_bench.EASY)
        start(job, "train.requested").wait()
        body = (Path(job.scratch) / "cloud" / "request.json").read_bytes()
        folder = tmp_path / "cloudd" / "retraining" / edge.device.id / "jobs" / job_of(body)
        planned(folder / "work" / "teacher", epochs=14)
        planned(folder / "work" / "student", epochs=16)
        done = until_done(job, 100.0)
        assert isinstance(done, TrainDone), done
        made = open_package(Path(done.directory))
        assert made.labels == list(boxes_bench.OLD) and made.manifest.task == "detection"
        before, after = (boxes_bench.recall(one, boxes_bench.OLD, BOX_CONTRAST) for one in (detector, made))
        assert after > before, (before, after, done.notes, done.verdict)
        assert "average precision" in done.notes[-1]
        lineage = read_lineage(made)
        assert lineage is not None and lineage.rung == "cloud"
        request = msgspec.json.decode((folder / "request.json").read_bytes(), type=RetrainRequest)
        records = spool_view.left(edge.state, SERVICE, 1000)
        parts = lineage.data.parts
        assert len(records) == len(request.pictures) == parts["learn"].pictures + parts["choose"].pictures
        assert sum(len(one.boxes or ()) for one in request.pictures) == sum(
            sum(parts[side].labels.values()) for side in ("learn", "choose")
        )
        assert request.detection == detector.manifest.detection and request.logits == ""


def test_tiles_go_one_by_one_with_the_label_of_what_they_show(tmp_path: Path, base: Package) -> None:
    """Each tile that teaches is a row; one that judges is none."""
    store = open_writing(tmp_path / "state")
    fill(store, dict.fromkeys(OLD, 12))
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    definition = DEFINITION + '[pipeline.tiles]\nwidth = 16\nheight = 16\naggregate = "mean"\n'
    lessons = load_tile_lessons(store, "lessons", parse_service(definition, "test"), OLD)
    learn = rows_of(lessons, lessons.learn, base.manifest.input)
    pictures = {one.file for one in lessons.learn.pictures}
    assert len(learn) == 4 * len(pictures) and set(learn.files) == pictures
    assert sum(learn.counts(len(OLD))) == len(learn)
    image = decode(learn.png(0), "grey")
    assert image.shape == (SIDE, SIDE) and len({learn.png(row) for row in range(4)}) == 4
    assert learn.shown(0) == (int(lessons.learn.labels[0]), None)
    store.close()


def test_nothing_is_sent_that_the_definition_does_not_allow(tmp_path: Path, cloud: Cloud, base: Package) -> None:
    with cloud:
        edge = Edge(tmp_path, cloud, base)
        for definition, told in (
            (DEFINITION + "[learning]\n", 'does not name "cloud"'),
            (DEFINITION + 'may_leave = "nothing"\n' + LEARNING, "no picture may leave"),
        ):
            (last,) = events(start(edge.order(cloud.url, "forbidden", definition)))[-1:]
            assert isinstance(last, TrainStopped) and last.kind == "refused" and told in last.reason
        assert spool_view.left(edge.state) == []
        assert not list((tmp_path / "cloudd" / "retraining").iterdir())


def test_a_cloudd_that_is_away_is_waited_for_and_one_that_refuses_is_not(
    tmp_path: Path, cloud: Cloud, base: Package
) -> None:
    with cloud:
        edge = Edge(tmp_path, cloud, base)
    job = edge.order(cloud.url, "away")
    last = events(start(job))[-1]
    assert isinstance(last, TrainStopped) and last.kind == "waiting" and "cannot be reached" in last.reason
    assert 0 < last.again_s <= 600
    with Cloud(tmp_path / "cloudd", "--retraining-hours", "0") as off:
        last = events(start(msgspec.structs.replace(job, url=off.url)))[-1]
        assert isinstance(last, TrainStopped) and last.kind == "failed" and "retrains no models" in last.reason
