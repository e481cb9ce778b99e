"""The dashboard as HTML: escaped, self-contained, with both verdicts beside each picture."""

from __future__ import annotations

import re

import msgspec

from cloudd import metrics
from cloudd.answers.pool import PoolLoad
from cloudd.dashboard.page import SCRIPTS, render
from cloudd.dashboard.state import DashboardState, DeviceView, ModelView, SampleView, Totals
from cloudd.retraining.view import RetrainingView
from edgekit.messages import UNSEEN, ServiceReport, SpoolReport, Verdict

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def state(text: str = "north", logged_in: bool = False, samples: int = 1) -> DashboardState:
    report = ServiceReport(name=text, model=text, state="ready", inspected=50, edge=30, cloud=15, degraded=5, gate=text)
    device = DeviceView(
        device_id="ABCDEFG-HIJKLMN", short_id="ABCDEFG", name=text, online=True, revoked=False, enrolled_at=1.0,
        seen_at=99.0, certificate_until=1e9, version=text, machine=text, health="warning", problems=[text],
        services=[report], spool=SpoolReport(items=3, bytes=1, quota=2), reported_at=99.0, desired_revision="",
        reported_revision="", in_sync=True,
    )  # fmt: skip
    sample = SampleView(
        id="1", sample_id="S", device_id="ABCDEFG-HIJKLMN", device=text, service=text, serial=text, reason="hard",
        late=True, captured_at=90.0, answered_at=95.0, agree=False, compute_ms=2.5, thumbnail="/samples/1.jpg",
        edge=Verdict(label="bridge", score=0.51, margin=0.1, model=text),
        cloud=Verdict(label="normal", score=0.97, margin=0.9, model=text),
    )  # fmt: skip
    totals = Totals(
        devices=1, online=1, revoked=0, services=1, inspected=50, decided_edge=30, decided_cloud=15, decided_degraded=5,
        spooled=3, answered=30, compared=20, agreed=18,
    )  # fmt: skip
    return DashboardState(
        name=text, version="1", now=100.0, started_at=1.0, device_url="https://127.0.0.1:8440", fingerprint=text,
        advertised=True, health="ok", problems=[], totals=totals, devices=[device], samples=[sample] * samples,
        models=[ModelView(name="m", version="1", digest="ab" * 32, files=3, size=1_500_000)], logged_in=logged_in,
        answering=PoolLoad(workers=2, running=1, waiting=3, backlog_s=0.5, refused=7, restarts=1),
    )  # fmt: skip


def test_both_verdicts_stand_beside_the_picture() -> None:
    html = render(state())
    for expected in ('src="/samples/1.jpg"', "bridge", "51%", "normal", "97%", "differ", "hard (late)", "90.0%"):
        assert expected in html, expected


def test_a_mosaic_says_how_many_of_its_regions_differ() -> None:
    shown = state()
    for regions, differ, words in (
        (12, 2, "12 regions, 2 differ<"),
        (1, 1, "1 region, 1 differs<"),
        (3, 0, "3 regions<"),
    ):
        sample = msgspec.structs.replace(shown.samples[0], regions=regions, differ=differ)
        assert words in render(msgspec.structs.replace(shown, samples=[sample]))
    assert "region" not in render(shown)


def test_features_are_shown_by_their_cut_and_what_the_edge_did_not_see_is_not_compared() -> None:
    shown = state()
    edge = Verdict(label=UNSEEN, score=0.0, margin=0.0, model="small@1")
    sample = msgspec.structs.replace(shown.samples[0], thumbnail="", tail="net-tail@1", cut="c<37", edge=edge)
    html = render(msgspec.structs.replace(shown, samples=[sample]))
    assert "features<br>cut c&lt;37" in html and "<img" not in html
    assert "not compared" in html and "differ" not in html


def test_what_cloudd_retrains_for_a_device_stands_in_its_row_escaped_and_in_the_metrics() -> None:
    one = RetrainingView(
        device_id="ABCDEFG-HIJKLMN", short_id="ABCDEFG", job="ab" * 16, service=HOSTILE, stage="training",
        text="trains a larger network", done=40, total=100, pictures=840, bytes=700_000, created_at=50.0, ended_at=None,
        removed=False,
    )  # fmt: skip
    ended = msgspec.structs.replace(one, job="cd" * 16, stage="done", ended_at=60.0)
    others = msgspec.structs.replace(one, job="ef" * 16, device_id="OTHER", service="elsewhere")
    shown = msgspec.structs.replace(state(), retraining=[one, ended, others])
    html = render(shown)
    assert "with 840 pictures: cloudd trains a larger network (step 40 of 100)" in html
    assert "done 40 s ago</div>" in html and "more before it" not in html
    assert HOSTILE not in html and "elsewhere" not in html
    lines = metrics.render(shown).splitlines()
    assert 'cloudd_retraining_jobs{stage="training"} 2' in lines and 'cloudd_retraining_jobs{stage="done"} 1' in lines
    assert "cloudd_retraining_pictures 1680" in lines


def test_of_retrainings_that_ended_the_one_that_ended_last_is_told_with_its_reason() -> None:
    first = RetrainingView(
        device_id="ABCDEFG-HIJKLMN", short_id="ABCDEFG", job="ab" * 16, service="solder", stage="refused",
        text="it has nothing to teach", done=0, total=0, pictures=840, bytes=700_000, created_at=20.0, ended_at=90.0,
        removed=False,
    )  # fmt: skip
    later = msgspec.structs.replace(first, job="cd" * 16, stage="done", text="", created_at=30.0, ended_at=40.0)
    html = render(msgspec.structs.replace(state(), retraining=[later, first]))
    assert "retraining of solder refused 10 s ago: it has nothing to teach; 1 more before it</div>" in html
    closed = msgspec.structs.replace(first, stage="closed", text="a newer job took its place", ended_at=None)
    assert "retraining of solder closed 80 s ago</div>" in render(msgspec.structs.replace(state(), retraining=[closed]))


def test_metrics_tell_how_busy_the_answer_workers_are() -> None:
    lines = metrics.render(state()).splitlines()
    for line in (
        "cloudd_answers_waiting 3",
        "cloudd_answers_running 1",
        "cloudd_answers_backlog_seconds 0.5",
        "cloudd_answers_refused_total 7",
        "cloudd_answer_workers 2",
        "cloudd_answer_workers_lost_total 1",
    ):
        assert line in lines, line


def test_whatever_comes_from_devices_is_escaped() -> None:
    html = render(state(HOSTILE, logged_in=True))
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    html = render(state())
    assert all(f"<script>{script}</script>" in html for script in SCRIPTS)
    assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', html)
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)=", html)


def test_revoking_needs_a_login() -> None:
    assert "/revoke" not in render(state())
    assert '/api/devices/ABCDEFG-HIJKLMN/revoke"' in render(state(logged_in=True))


def test_a_device_that_reports_a_service_twice_does_not_spoil_the_metrics() -> None:
    shown = state('a\nb"c')
    twice = msgspec.structs.replace(shown.devices[0], services=shown.devices[0].services * 2)
    lines = metrics.render(msgspec.structs.replace(shown, devices=[twice])).splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert 'cloudd_device_online{device="ABCDEFG",name="a\\nb\\"c"}' in series
