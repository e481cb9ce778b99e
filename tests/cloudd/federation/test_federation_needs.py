"""Who is invited: power, battery, heat and health of a device against what a job asks for."""

from __future__ import annotations

import msgspec
import pytest

from cloudd.federation.definition import read
from cloudd.federation.errors import FederationError
from cloudd.federation.needs import Needs, lack
from cloudd.federation.selection import Candidate, eligible, lacking
from edgekit.federated.plan import Plan
from edgekit.messages.federation import Standing
from tests.support.federation import definition

PLAN = msgspec.json.decode(b'{"strategy": {"strategy": "fedavg", "clip": 1.0}}', type=Plan)


def standing(**told: object) -> Standing:
    return msgspec.convert({"version": 0, "state": "0" * 64, "samples": 20, **told}, Standing)


@pytest.mark.parametrize(
    ("needs", "told", "why"),
    [
        ({}, {}, ""),
        ({}, {"health": "warning"}, ""),
        ({}, {"health": "error"}, "health: error"),
        ({"health": "ok"}, {"health": "warning"}, "health: warning"),
        ({"power": "mains"}, {"power": "mains", "battery": 0.1}, ""),
        ({"power": "mains"}, {"power": "battery", "battery": 1.0}, "on battery"),
        ({"power": "mains"}, {}, "power unknown"),
        ({"min_battery": 0.5}, {"power": "battery", "battery": 0.5}, ""),
        ({"min_battery": 0.5}, {"power": "battery", "battery": 0.4}, "battery too low"),
        ({"min_battery": 0.5}, {"power": "battery"}, "battery too low"),
        ({"min_battery": 0.5}, {"power": "mains", "battery": 0.1}, ""),
        ({"max_celsius": 70}, {"celsius": 70}, ""),
        ({"max_celsius": 70}, {"celsius": 75}, "too hot"),
        ({"max_celsius": 70}, {}, ""),
        ({}, {"samples": 9}, "too few samples"),
    ],
)
def test_a_device_is_held_back_by_what_it_lacks(needs: dict[str, object], told: dict[str, object], why: str) -> None:
    assert lack(standing(**told), msgspec.convert(needs, Needs), 10) == why


def test_people_see_how_many_devices_are_held_back_and_why() -> None:
    told: list[dict[str, object]] = [
        {"power": "battery"}, {"power": "battery"}, {"power": "mains"}, {"power": "mains", "celsius": 90.0},
    ]  # fmt: skip
    candidates = [Candidate(bytes([at]), standing(**one), float(at), 0) for at, one in enumerate(told)]
    needs = Needs(power="mains", max_celsius=60.0)
    assert [one.node for one in eligible(candidates, PLAN, "learn", 0, 0, needs)] == [bytes([2])]
    assert lacking(candidates, 0, needs) == "2 on battery, 1 too hot"
    assert len(eligible(candidates, PLAN, "learn", 0, 0)) == 4


def test_the_table_needs_is_strict() -> None:
    text = definition(None)
    found, _ = read(text.replace("[deadlines]", '[needs]\npower = "mains"\nmax_celsius = 70\n[deadlines]'))
    assert found.needs == Needs(power="mains", max_celsius=70.0)
    with pytest.raises(FederationError, match="power"):
        read(text.replace("[deadlines]", '[needs]\npower = "nuclear"\n[deadlines]'))
    with pytest.raises(FederationError, match="heat"):
        read(text.replace("[deadlines]", "[needs]\nheat = 3\n[deadlines]"))
