"""The rung `cloud` with real processes: the device's job, cloudd and its own job, mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from test_train_process import events, start
from train_bench import DEFINITION, OLD, SERVICE, accuracy, fill, order

from edged.collab import spool_view
from edged.samples.opening import open_store
from edged.samples.reading import Filter
from edged.train.lineage import read_lineage
from edgekit.messages.learning import TrainDone, TrainOrder, TrainStopped
from edgekit.packages import Package, open_package
from edgekit.services import Samples
from tests.support.cloud import Cloud, FakeDevice

CONTRAST = 0.25
"""Of a scene that the base was not trained on."""
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
