"""Heads of one round with real processes: one cloudd, the children of four devices, mTLS, real pictures."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fl_hall import ended, start
from fl_head_hall import HeadHall

from edged.federation.notes import JobNote
from edgekit.messages.learning import TrainDone
from edgekit.packages import open_package
from tests.support.cloud import Cloud
from tests.support.heads import LABELS


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> HeadHall:
    return HeadHall(tmp_path_factory.mktemp("hall"), 4)


def take_part(hall: HeadHall, cloud: Cloud, job: str, kills: list[str] | None = None) -> list[JobNote]:
    """All devices, to the end of the job; those that are killed are started again. Where each stands then."""
    orders = [one.order(cloud.url, job, hall.plants) for one in hall.edges]
    with ExitStack() as stack:
        children = [start(order, kill) for order, kill in zip(orders, kills or [""] * 4, strict=True)]
        for child in children:
            stack.callback(child.kill)
        for place, kill in enumerate(kills or []):
            if kill:
                assert ended(children[place])[0] == -signal.SIGKILL, kill
                children[place] = start(orders[place])
                stack.callback(children[place].kill)
        for child in children:
            status, _, log = ended(child)
            assert status == 0, log
    return [one.note(job) for one in hall.edges]


async def test_a_head_in_one_round_and_a_site_that_takes_its_sums_out_again(hall: HeadHall) -> None:
    """Devices are killed when they have computed, masked, signed and applied; the sums are exact all the same."""
    with Cloud(hall.root / "cloudd") as cloud:
        await hall.join(cloud)
        first = hall.head(cloud, "void-1", new_labels=["void"], evaluate_every=1)
        notes = take_part(hall, cloud, first, ["fl.trained", "fl.saved", "fl.vote", "fl.applied"])
        assert [(one.stage, one.version, one.head) for one in notes] == [("judging", 1, True)] * 4
        codes = [one.in_totals(first) for one in hall.edges]
        totals = hall.edges[0].model(first)
        assert all(one is not None and one.any() for one in codes)
        np.testing.assert_array_equal(totals, sum(codes))
        assert totals[:3].sum() == 2**6 * sum(one.samples for one in notes)

        done = _candidate(hall, cloud, first)
        made = open_package(Path(done.directory))
        assert tuple(made.labels) == LABELS and made.digest == done.digest

        plain = hall.head(cloud, "plain", secure=False, new_labels=["void"])
        take_part(hall, cloud, plain)
        np.testing.assert_array_equal(hall.edges[0].model(plain), totals)

        hall.edges[3].leave(first)
        second = hall.head(cloud, "void-2", continues="void-1")
        notes = take_part(hall, cloud, second, ["", "", "", "fl.apply"])
        assert [one.stage for one in notes] == ["judging"] * 3 + ["done"]
        assert "nothing of this device" in notes[3].text
        np.testing.assert_array_equal(hall.edges[0].model(second), sum(codes[:3]))
        assert not hall.edges[3].in_totals(second).any()
        assert hall.edges[0].in_totals(first) is None, "what it had there is a part of the newer totals"
        np.testing.assert_array_equal(hall.edges[0].in_totals(second), codes[0])

        third = hall.head(cloud, "void-3", continues="void-2", least=3)
        status, _, log = ended(start(hall.edges[3].order(cloud.url, third, hall.plants)))
        assert status == 1 and "is to have nothing in the heads of solder" in log
        assert hall.edges[3].note(third).stage == "refused"


def _candidate(hall: HeadHall, cloud: Cloud, job: str) -> TrainDone:
    one = hall.edges[0]
    changes = {"finish": True, "name": "small.solder", "version": "1-1", "scratch": str(one.state / "candidate")}
    status, out, log = ended(start(one.order(cloud.url, job, hall.plants, **changes)))
    assert status == 0, log
    return msgspec.json.decode(out.splitlines()[-1], type=TrainDone)
