"""A bad link between real daemons: the line gets its answers in time, and no hard sample is lost or doubled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from edgekit.messages import Decision
from tests.support.edged import wait_for
from tests.support.models import picture
from tests.support.stage import DEADLINE_MS, EASY, HARD, SLACK_S, Plant, Template

PAUSE_S = 0.03
ENOUGH = 8
"""Hard samples that have to be decided under each fault."""


class Sent(NamedTuple):
    """One picture and what became of it. Times are monotonic seconds."""

    at: float
    seconds: float
    hard: bool
    decision: Decision


class Line(threading.Thread):
    """A camera that never stops: three easy pictures, a hard one, and so on."""

    def __init__(self, plant: Plant) -> None:
        super().__init__(name="line", daemon=True)
        self._plant = plant
        self._ending = threading.Event()
        self.sent: list[Sent] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for number in range(1_000_000):
                if self._ending.wait(PAUSE_S):
                    return
                hard = number % 4 == 3
                data = picture(HARD, seed=number) if hard else picture(EASY)
                began = time.monotonic()
                decision = self._plant.edge.inspect("solder", data)
                self.sent.append(Sent(began, time.monotonic() - began, hard, decision))
        except Exception as error:  # raised again in the test's thread
            self.error = error

    def since(self, began: float) -> list[Sent]:
        """What was sent after a time."""
        return [one for one in list(self.sent) if one.at > began]

    def end(self) -> list[Sent]:
        """Stop, and everything that was sent. Raises what went wrong."""
        self._ending.set()
        self.join(30)
        if self.error is not None:
            raise self.error
        return self.sent


@pytest.fixture(scope="module")
def plant(template: Template) -> Iterator[Plant]:
    with Plant(template) as plant:
        plant.start_relayed()
        yield plant


def hard_since(line: Line, began: float, where: str, count: int) -> Callable[[], bool]:
    def enough() -> bool:
        assert line.error is None, line.error
        return sum(one.hard and one.decision.decided == where for one in line.since(began)) >= count

    return enough


def check_arrived(plant: Plant, sent: list[Sent]) -> None:
    """Every hard sample is at cloudd once, whether it was answered in time or came from the spool; nothing waits."""
    plant.wait_drained()
    wanted = {one.decision.sample_id for one in sent if one.hard}
    arrived = plant.arrived()
    assert wanted <= arrived.keys(), f"lost: {wanted - arrived.keys()}"
    assert set(arrived.values()) == {1}, "a sample was delivered twice"
    waiting = plant.edge.command("spool", "list", "--json")
    assert waiting.returncode == 0 and waiting.stdout.strip() == "[]"


def check_in_time(sent: list[Sent]) -> None:
    for one in sent:
        assert one.seconds < DEADLINE_MS / 1000 + SLACK_S, f"an answer took {one.seconds:.2f} s: {one}"


def check_easy(sent: list[Sent]) -> None:
    """The gate trusts what it trusted before, whatever the link does."""
    for one in sent:
        if not one.hard:
            assert (one.decision.decided, one.decision.sent, one.decision.label) == ("edge", None, "dark"), one


@pytest.mark.parametrize("fault", ["refused", "hung", "slow", "reset"])
def test_the_line_goes_on_under_a_fault_and_everything_arrives_afterwards(plant: Plant, fault: str) -> None:
    assert plant.link is not None
    plant.wait_for_link()
    line = Line(plant)
    line.start()
    try:
        wait_for(hard_since(line, 0.0, "cloud", 2))
        plant.link.set(fault)  # type: ignore[arg-type]
        began = time.monotonic()
        wait_for(hard_since(line, began, "edge-degraded", ENOUGH))
        during = [one for one in line.since(began) if one.hard]
        plant.link.set("healthy")
        wait_for(hard_since(line, time.monotonic(), "cloud", 2), 60.0)
    finally:
        plant.link.set("healthy")
        sent = line.end()
    check_in_time(sent)
    check_easy(sent)
    for one in during:
        decision = one.decision
        assert decision.decided == "edge-degraded" and decision.sent == "hard" and decision.reason, one
        assert decision.label == decision.edge.label and not decision.certified
        # The answer says "spooled" only for what is on the disk by then; a slow disk is said, and loses nothing.
        assert decision.spooled or "is being stored" in decision.reason, one
    assert sum(one.decision.spooled for one in during) >= ENOUGH // 2
    check_arrived(plant, sent)


def test_half_open_connections_are_noticed_and_replaced_without_help(template: Template) -> None:
    """A firewall forgets every connection; nobody gets an error, and new connections would work."""
    with Plant(template) as plant:
        link = plant.start_relayed()
        plant.wait_for_link()
        line = Line(plant)
        line.start()
        try:
            wait_for(hard_since(line, 0.0, "cloud", 2))
            link.forget()
            began, forgotten_at = time.monotonic(), time.time()
            wait_for(hard_since(line, began, "edge-degraded", 1))
            lost_at = line.since(began)[-1].at
            wait_for(hard_since(line, lost_at, "cloud", 5), 60.0)
            # The control channel notices by its own pings, within 1.5 times its 10 s of silence.
            plant.edge.wait_for(lambda: cloudd_hears(plant, forgotten_at), "to report to cloudd again", 60.0)
        finally:
            sent = line.end()
        check_in_time(sent)
        check_easy(sent)
        assert all(one.decision.spooled or one.decision.decided == "cloud" for one in sent if one.hard)
        check_arrived(plant, sent)


def cloudd_hears(plant: Plant, after: float) -> bool:
    """cloudd has a report that is newer than `after` (wall clock; both run on this machine)."""
    (device,) = plant.cloud.client.get("/devices")
    return bool(device["online"]) and device["reported_at"] > after + 0.5 and plant.edge.status().cloud.up
