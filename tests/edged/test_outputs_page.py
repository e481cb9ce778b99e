"""Outputs on the status page and in the metrics."""

from __future__ import annotations

from edged.status import metrics
from edged.status.page import render
from edged.status.state import ServiceState, StatusState
from edgekit.messages import OutputReport, ServiceReport

HOSTILE = "<script>\"'&"


def state(*outputs: OutputReport) -> StatusState:
    report = ServiceReport(name="solder", model="m@1", state="ready", outputs=list(outputs))
    service = ServiceState(
        name="solder", origin="local", model="m", priority="inline", deadline_ms=300, source="http", may_leave="raw",
        hard_samples="off", answer_model="", report=report,
    )  # fmt: skip
    return StatusState(
        version="1", name="x", device_id="x", state_dir="/", started_at=1.0, now=1000.0, services=[service]
    )


def test_outputs_are_on_the_page_and_a_failing_one_says_why() -> None:
    good = OutputReport(name="/data/out.jsonl", kind="jsonl", delivered=12345)
    bad = OutputReport(
        name=HOSTILE, kind="webhook", waiting=7, dropped=3, failing_since=900.0, problem=f"it answered 503 {HOSTILE}"
    )
    html = render(state(good, bad))
    assert "/data/out.jsonl" in html and "12\u202f345" in html and "it answered 503" in html
    assert HOSTILE not in html
    assert 'id="outputs"' not in render(state())


def test_outputs_are_in_the_metrics() -> None:
    text = metrics.render(
        state(OutputReport(name='a"b', kind="mqtt", delivered=5, waiting=6, dropped=7, failing_since=1.0))
    )
    labels = '{service="solder",kind="mqtt",output="a\\"b"}'
    for line in (
        f"edged_output_delivered_total{labels} 5",
        f"edged_output_waiting{labels} 6",
        f"edged_output_dropped_total{labels} 7",
        f"edged_output_up{labels} 0",
    ):
        assert line in text.splitlines()
