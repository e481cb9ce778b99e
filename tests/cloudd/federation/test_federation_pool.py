"""The devices that stand ready: who is still there, who comes first, and when a round may begin."""

from __future__ import annotations

import msgspec
import pytest

from cloudd.federation.definition import Definition, Window, read
from cloudd.federation.needs import Needs
from cloudd.federation.pool import Look, Pool
from edgekit.federated.averaging import FedAvg
from edgekit.federated.plan import Plan
from edgekit.federated.robust import Robust
from edgekit.messages.federation import WAIT_S, FederatedJob, LocalTraining, Standing
from tests.support.federation import definition

PLAN = Plan(strategy=FedAvg(clip=1.0))
JOB = FederatedJob(
    id="ab" * 16, service="solder", model="small@1", package="0" * 64, labels=("good", "bad"), plan="{}",
    local=LocalTraining(), rounds=1, least=3, most=4,
)  # fmt: skip
NOON = 12 * 3600.0


def pool(plan: Plan = PLAN, members: int | None = None, **changes: object) -> Pool:
    found: Definition = msgspec.structs.replace(read(definition(None, least=3))[0], **changes)
    return Pool(JOB, found, plan, members)


def node(number: int) -> bytes:
    return bytes([number]) * 32


def stand(them: Pool, *numbers: int, now: float = 0.0, **said: object) -> None:
    for number in numbers:
        them.stand(node(number), Standing(**{"version": 0, "state": "0" * 64, "samples": 10, **said}), now)  # type: ignore[arg-type]


def look(them: Pool, now: float = 1.0, wall: float = NOON) -> Look:
    return them.look("learn", 0, now=now, wall=wall)


def test_a_round_begins_when_enough_stand_ready_and_waits_no_longer_when_nobody_can_come() -> None:
    them = pool()
    stand(them, 1, 2)
    assert (look(them).enough, look(them).text) == (False, "2 devices stand ready; 3 are needed")
    stand(them, 3)
    assert look(them).enough and not look(them).full
    stand(them, 4)
    assert look(them).full, "four are the most"
    of_three = pool(members=3)
    stand(of_three, 1, 2, 3)
    assert look(of_three).full, "the rosters have no more"


def test_buckets_need_as_many_devices_each() -> None:
    them = pool(msgspec.structs.replace(PLAN, robust=Robust(kind="median", buckets=3)))
    stand(them, *range(1, 9))
    assert (look(them).enough, look(them).text) == (False, "8 devices stand ready; 9 are needed")
    stand(them, 9)
    assert look(them).enough and not look(them).full


def test_a_device_that_asks_no_more_stands_ready_no_more_and_one_that_asks_again_keeps_its_place() -> None:
    them = pool()
    stand(them, 1, 2, 3)
    assert not them.stand(node(1), Standing(version=0, state="0" * 64, samples=10), 20.0)
    assert them.stand(node(2), Standing(version=0, state="0" * 64, samples=11), 20.0), "that is news"
    found = look(them, now=WAIT_S + 10.5)
    assert [one.node for one in found.fit] == [node(2), node(1)] and len(them) == 2
    assert {one.since for one in found.fit} == {0.0}
    assert them.samples == 21


def test_who_was_in_a_sum_comes_after_who_was_not() -> None:
    them = pool()
    stand(them, 1, 2, 3)
    them.count([node(1)])
    assert [one.node for one in look(them).fit][-1] == node(1)
    them.leave([node(2)])
    assert {one.node for one in look(them).fit} == {node(1), node(3)}


def test_outside_its_window_a_job_says_so_and_never_begins() -> None:
    them = pool(window=Window(begin="22:00", end="06:00"))
    stand(them, 1, 2, 3, 4)
    found = look(them)
    assert (found.opened, found.enough, found.text) == (False, False, "the job's window is closed")
    assert look(them, wall=23 * 3600.0).enough


def test_why_devices_are_held_back_is_said() -> None:
    them = pool(needs=Needs(power="mains"))
    stand(them, 1, 2, power="battery")
    stand(them, 3)
    assert look(them).text == "0 devices stand ready; 3 are needed (2 on battery, 1 power unknown)"


@pytest.mark.parametrize("aes", [True, False])
def test_the_key_stream_is_one_that_all_processors_are_good_at(aes: bool) -> None:
    them = pool()
    stand(them, 1, 2)
    stand(them, 3, aes=aes)
    assert them.aes([node(1), node(2)]) and them.aes([node(1), node(3)]) == aes
    assert them.aes([node(9)]), "one that has gone says nothing"
