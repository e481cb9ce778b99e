"""Real processes on loopback: one cloudd, the children of four devices, mutual TLS, real pictures, real training."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fl_hall import Hall, ended, start

from edgekit.messages.learning import TrainDone
from edgekit.packages import open_package
from tests.support.cloud import Cloud


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    return Hall(tmp_path_factory.mktemp("hall"), 4)


async def test_secure_and_plain_jobs_end_with_the_same_model_which_becomes_a_candidate(hall: Hall) -> None:
    """In the secure one devices are killed while they train, and between the signature on the survivors and the end."""
    with Cloud(hall.root / "cloudd") as cloud, ExitStack() as stack:
        await hall.join(cloud)
        models: dict[bool, np.ndarray] = {}
        for secure in (True, False):
            job = hall.begin(cloud, "secure" if secure else "plain", secure)
            orders = [one.order(cloud.url, job, hall.plants) for one in hall.edges]
            kills = ["fl.step:2", "fl.checkpoint", "fl.vote", ""] if secure else [""] * 4
            children = [start(order, kill) for order, kill in zip(orders, kills, strict=True)]
            for child in children:
                stack.callback(child.kill)
            for place in (place for place, kill in enumerate(kills) if kill):
                assert ended(children[place])[0] == -signal.SIGKILL, kills[place]
                children[place] = start(orders[place])
                stack.callback(children[place].kill)
            for child in children:
                status, _, log = ended(child)
                assert status == 0, log
            for one in hall.edges:
                note = one.note(job)
                assert (note.stage, note.version, note.contributed) == ("judging", 2, 2), note
                np.testing.assert_array_equal(one.model(job), hall.edges[0].model(job))
            models[secure] = hall.edges[0].model(job)
        np.testing.assert_array_equal(models[True], models[False])
        first = hall.edges[0]
        changes = {"finish": True, "name": "small.solder", "version": "1-1", "scratch": str(first.state / "candidate")}
        status, out, log = ended(start(first.order(cloud.url, job, hall.plants, **changes)))
        assert status == 0, log
        done = msgspec.json.decode(out.splitlines()[-1], type=TrainDone)
        made = open_package(Path(done.directory))
        assert (made.ref, made.digest) == ("small.solder@1-1", done.digest)
        assert "2 sums, of which 2 hold this device's update" in done.notes[-1]
