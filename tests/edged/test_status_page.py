"""The status page as HTML: everything is escaped, nothing is fetched from elsewhere, and the numbers are on it."""

from __future__ import annotations

import re

import msgspec

from edged.status.page import SCRIPTS, STYLES, render
from edged.status.state import CloudState, Health, HealthItem, ServiceState, StatusState, WorkerState
from edgekit.messages import ServiceReport, SpoolReport

HOSTILE = "<script>alert(1)</script>\"'&"


def state(text: str = "solder") -> StatusState:
    report = ServiceReport(
        name=text, model=text, state="ready", detail=text, inspected=1234, edge=1000, cloud=200, degraded=34,
        offload_share=0.19, agreement=0.981, p50_ms=1.5, p99_ms=4.25, gate=text, labels={text: 1234},
    )  # fmt: skip
    service = ServiceState(
        name=text, origin="local", model=text, priority="inline", deadline_ms=300, source=text, may_leave="raw",
        hard_samples="risk", answer_model=text, report=report, refused=text,
    )  # fmt: skip
    return StatusState(
        version="1", name=text, device_id=text, state_dir=text, started_at=1.0, now=100.0,
        health=Health(level="error", verdict=text, items=[HealthItem(code="x", severity="error", text=text, since=50)]),
        cloud=CloudState(joined=True, url=text, name=text, up=True, authority=text, certificate_until=864100.0),
        worker=WorkerState(state="ready", breaker="open"),
        services=[service],
        spool=SpoolReport(items=7, bytes=5_000_000, quota=10_000_000, oldest_at=40.0, evicted=1, delivered=99),
    )  # fmt: skip


def test_the_page_says_how_many_samples_wait_and_is_silent_without_any() -> None:
    assert "1\u202f000 samples wait for a label" in render(state(), waiting=1000)
    assert "1 sample waits for a label" in render(state(), waiting=1)
    assert "/review" not in render(state())


def test_the_numbers_are_on_the_page() -> None:
    html = render(state())
    for expected in ("1\u202f234", "19%", "98.1%", "1.5 / 4.2 ms", "5.0 MB of 10.0 MB", "10 days left", "connected"):
        assert expected in html, expected


def test_verdicts_are_counted_in_words() -> None:
    shown = render(state())
    assert "review" not in shown
    report = msgspec.structs.replace(state().services[0].report, verdicts={"pass": 1200, "review": 3})
    service = msgspec.structs.replace(state().services[0], report=report)
    html = render(msgspec.structs.replace(state(), services=[service]))
    assert "pass 1\u202f200" in html and "review 3" in html and "fail" not in html


def test_regions_are_counted_in_words() -> None:
    assert "regions" not in render(state())
    report = msgspec.structs.replace(state().services[0].report, regions={"candidates": 1200, "defects": 3})
    service = msgspec.structs.replace(state().services[0], report=report)
    html = render(msgspec.structs.replace(state(), services=[service]))
    assert "1\u202f200 regions: 3 defects, 0 answered by the cloud" in html


def test_whatever_comes_from_outside_is_escaped() -> None:
    html = render(state(HOSTILE), logged_in=True)
    for script in SCRIPTS:
        html = html.replace(f"<script>{script}</script>", "")
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_the_page_carries_no_asset_and_nothing_inline_that_the_policy_would_refuse() -> None:
    html = render(state(), logged_in=True)
    for script in SCRIPTS:
        assert f"<script>{script}</script>" in html
    for style in STYLES:
        assert f"<style>{style}</style>" in html
    assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', html)
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)=", html)
    assert len(html) < 20_000


def test_buttons_appear_only_after_login() -> None:
    assert "recalibrate" not in re.sub(r"to recalibrate services", "", render(state()))
    assert '/api/services/solder/recalibrate"' in render(state(), logged_in=True)


def test_a_device_alone_says_how_to_go_on() -> None:
    html = render(StatusState(version="1", name="new", device_id="D", state_dir="/", started_at=0, now=1))
    assert "edged join TOKEN" in html
    assert "edged services add" in html
