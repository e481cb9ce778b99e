"""Split inference between real daemons: `cloudd split`, pictures that may not leave, and a link that changes.

Nothing but features leaves, the answers come from the tail, and the plan is there to read: in the API and on the page.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from benchmarks.daemons import Cloud, Edge, Fleet
from benchmarks.shaped_link import ShapedLink
from edged.collab.spool_view import LeftRecord
from edgekit.messages import Decision, PlanReport
from edgekit.packages import open_package
from tests.support.edged import wait_for
from tests.support.halves import MODELS, samples

BYTES_PER_S = 12.5e6
QUICK_S, SLOW_S = 0.002, 1.2  # each way
DEFINITION = """
name = "solder"
model = "solder-small"
deadline_ms = 2000
may_leave = "features"
[hard_samples]
answer_model = "solder-large"
calibration = 1000000
[split]
heads = "solder-large-head"
"""
PICTURES = samples(open_package(MODELS / "solder-large"))


class Adjustable(ShapedLink):
    """A link that becomes slower or faster."""

    def set_delay(self, seconds: float) -> None:
        self._delay_s = seconds


class Plant:
    """A cloudd with a split model and a device behind a link whose speed can be changed."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.cloud: Cloud = fleet.start_cloud()
        for name in ("solder-small", "solder-large"):
            self.cloud.add_model(MODELS / name)
        made = self.cloud.command("split", "solder-large", "--cuts", "3", "--out", str(folder))
        assert made.returncode == 0, made.stderr
        host, _, port = self.cloud.url.removeprefix("https://").rpartition(":")
        self.link = Adjustable(host, int(port), BYTES_PER_S, QUICK_S)
        self.edge: Edge = fleet.start_edge("line-1")
        self.edge.join(self.cloud, f"https://127.0.0.1:{self.link.port}")
        self.edge.add_service(DEFINITION, timeout_s=60.0)
        self._pictures = cycle(PICTURES.items())

    def one(self) -> tuple[str, Decision]:
        """The next picture: what it shows, and what was decided."""
        label, picture = next(self._pictures)
        return label, self.edge.inspect("solder", picture)

    def plan(self, route: str) -> PlanReport | None:
        """The plan, once its route is of this kind."""
        plan = self.edge.service("solder").report.plan
        return plan if plan is not None and plan.route.startswith(route) else None

    def left(self) -> list[LeftRecord]:
        return self.edge.client.get("/spool/left?limit=1000", list[LeftRecord])


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with Fleet(tmp_path_factory.mktemp("s")) as fleet:
        plant = Plant(fleet, tmp_path_factory.mktemp("split"))
        try:
            yield plant
        finally:
            plant.link.close()


def test_asked_samples_are_answered_by_way_of_a_split_and_the_plan_can_be_read(plant: Plant) -> None:
    # The head may come after the service, and the tail is loaded with the first question.
    wait_for(lambda: plant.one()[1].decided == "cloud", timeout_s=60.0)
    for _ in range(20):
        label, decision = plant.one()
        assert decision.decided == "cloud", decision.reason
        assert decision.route.startswith("split@") and decision.model == "solder-large@1"
        assert decision.label == label and decision.timings_ms["head"] > 0
    plan = wait_for(lambda: plant.plan("split@"))
    rows = {row.name: row for row in plan.routes}
    assert rows[plan.route].chosen and rows[plan.route].feasible
    assert rows["frame"].why == "pixels may not leave the site"
    records = plant.left()
    assert records and all(record.cut for record in records), "nothing but features has left"
    state = plant.edge.status()
    with urllib.request.urlopen(f"http://{state.addresses.page}/") as reply:
        page = reply.read().decode()
    assert "Way to the cloud" in page and plan.route in page


def test_when_the_link_is_too_slow_samples_stay_and_their_features_are_delivered_later(plant: Plant) -> None:
    wait_for(lambda: plant.one()[1].decided == "cloud", timeout_s=60.0)
    plant.link.set_delay(SLOW_S)
    try:
        # By the plan, or because the breaker has had enough of it: the two race.
        wait_for(lambda: plant.one()[1].decided == "edge-degraded" and plant.plan("edge"), timeout_s=60.0)
        began = time.monotonic()
        _, decision = plant.one()
        assert time.monotonic() - began < SLOW_S, "a sample that stays waits for nobody"
        assert decision.reason.endswith("; its features are being stored") and decision.route == ""
    finally:
        plant.link.set_delay(QUICK_S)
    wait_for(lambda: plant.one()[1].decided == "cloud", timeout_s=60.0)
    wait_for(lambda: (spool := plant.edge.status().spool) is not None and spool.items == 0, timeout_s=60.0)
    records = plant.left()
    assert any(record.late for record in records) and all(record.cut for record in records)
