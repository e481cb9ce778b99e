"""The last ten minutes: what is kept, in how little memory, and the pictures that are drawn of it."""

from __future__ import annotations

import re
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.statistics import LatencyWindow
from edged.status.charts import MAX_CHARTS, history_card, linear_ticks, log_ticks
from edged.status.history import SAMPLE_S, SAMPLES, SPAN_S, History, Sample
from edged.status.page import render
from edged.status.state import StatusState
from edgekit.messages import ServiceReport


def report(name: str = "solder", p50: float | None = 2.0, p99: float | None = 9.0, rate: float = 30.0) -> ServiceReport:
    return ServiceReport(name=name, model="m@1", state="ready", recent_p50_ms=p50, recent_p99_ms=p99, recent_per_s=rate)


def test_ten_minutes_are_kept_and_no_more() -> None:
    history = History()
    for number in range(SAMPLES + 50):
        history.take([report(p50=float(number))], number * SAMPLE_S)
    now = (SAMPLES + 49) * SAMPLE_S
    kept = history.lately(now)["solder"]
    assert len(kept) == SAMPLES and kept[-1].p50_ms == SAMPLES + 49
    assert kept[0].at == now - SPAN_S + SAMPLE_S
    assert len(history.lately(now + SPAN_S / 2)["solder"]) == SAMPLES / 2 + 1, "a machine that slept shows what is left"


def test_services_come_and_go() -> None:
    history = History()
    history.take([report("a"), report("b", None, None, 0.0)], 1)
    history.take([report("b")], 3)
    assert set(history.lately(3)) == {"b"}
    first, second = history.lately(3)["b"]
    assert (first.p50_ms, first.p99_ms, second.per_s) == (None, None, 30.0)


def test_sixty_four_services_cost_less_than_a_megabyte() -> None:
    history, reports = History(), [report(f"service-{number}") for number in range(64)]
    tracemalloc.start()
    for number in range(SAMPLES + 10):
        history.take(reports, number * SAMPLE_S)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1 << 20


def test_the_recent_rate_is_right_from_the_first_second_on() -> None:
    window = LatencyWindow(2.0, 5)
    assert window.per_s(100.0) == 0.0
    for number in range(1, 1001):
        window.add(1.0, 100 + number / 50)
        if number >= 100:
            assert window.per_s(100 + number / 50) == pytest.approx(50, rel=0.03)
    assert window.per_s(140.0) == 0.0


# --- pictures --------------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e6), st.floats(1, 1e5))
def test_logarithmic_ticks_enclose_the_values_and_are_few(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks)) and 2 <= len(ticks) <= 12
    assert ticks[0] <= low * 1.001 and ticks[-1] >= low * factor * 0.999
    assert all(re.fullmatch(r"[125]e[+-]\d+", f"{tick:.0e}") for tick in ticks)


@given(st.floats(0, 1e7))
def test_linear_ticks_begin_at_zero_and_end_close_above(high: float) -> None:
    ticks = linear_ticks(high)
    assert ticks[0] == 0 and ticks[1] * 2 == ticks[2] and ticks[2] >= high * 0.999
    assert ticks[2] <= max(2.5 * high, 0.01)


def drawn(history: dict[str, Sequence[Sample]], now: float) -> ElementTree.Element:
    html = history_card(history, now)
    return ElementTree.fromstring(html)


def busy(now: float, count: int = SAMPLES) -> list[Sample]:
    return [Sample(now - (count - 1 - n) * SAMPLE_S, 30 + n % 7, 2 + n % 3, 9 + n % 11) for n in range(count)]


def test_a_picture_has_axes_units_numbers_and_words() -> None:
    card = drawn({"solder": busy(5000)}, 5000)
    latency, rate = card.iter("svg")
    label = latency.get("aria-label") or ""
    assert latency.get("role") == "img" and (latency.findtext("title") or "") == label
    assert label == (
        "Latency of solder in ms over the last 10 minutes: "
        "p50 now 4.00, from 2.00 to 4.00; p99 now 11.0, from 9.00 to 19.0"
    )
    assert "Throughput of solder in per second over the last 10 minutes: decided now 35.0" in (
        rate.get("aria-label") or ""
    )
    texts = [element.text for element in latency.iter("text")]
    assert texts[:4] == ["2", "5", "10", "20"] and texts[-3:] == ["10 min ago", "5 min ago", "now"]
    captions = ["".join(caption.itertext()) for caption in card.iter("figcaption")]
    assert captions == ["Latency, ms p50 4.00 p99 11.0", "Throughput, per second decided 35.0"]
    assert [path.get("class") for path in card.iter("path")] == ["p50", "p99", "rate"]


def points(path: str) -> list[list[tuple[int, int]]]:
    """The strokes of a path of M, l and h commands, in absolute coordinates."""
    strokes: list[list[tuple[int, int]]] = []
    x = y = 0
    for command, first, second in re.findall(r"([Mlh])(-?\d+)(?: (-?\d+))?", path):
        if command == "M":
            x, y = int(first), int(second)
            strokes.append([(x, y)])
        else:
            x, y = x + int(first), y + int(second or 0)
            strokes[-1].append((x, y))
    assert "".join(re.findall(r"[Mlh]-?\d+(?: -?\d+)?", path)) == path
    return strokes


@given(
    st.lists(
        st.tuples(st.floats(0.1, 20), st.floats(0, 1e4), *[st.none() | st.floats(0.01, 1e5)] * 2),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_every_line_stays_in_its_picture(raw: list[tuple[float, float, float | None, float | None]]) -> None:
    at, samples = 1000.0, []
    for gap, rate, p50, p99 in raw:
        at += gap
        samples.append(Sample(at, rate, p50, p99))
    html = history_card({"x": samples}, at)
    if all(sample.p50_ms is None for sample in samples):
        assert html == ""
        return
    for path in ElementTree.fromstring(html).iter("path"):
        for stroke in points(path.get("d") or ""):
            assert all(0 <= x <= 720 and 0 <= y <= 250 for x, y in stroke)


def test_lines_break_where_nothing_was_measured_and_where_the_machine_slept() -> None:
    samples = busy(2000, 100)
    samples[40:50] = [Sample(sample.at, 0.0, None, None) for sample in samples[40:50]]
    late = [Sample(sample.at + 100, sample.per_s, sample.p50_ms, sample.p99_ms) for sample in samples[80:]]
    card = drawn({"x": samples[:80] + late}, 2100)
    p50, _, rate = (points(path.get("d") or "") for path in card.iter("path"))
    assert len(p50) == 3
    assert len(rate) == 2, "a rate of nothing is zero, which is drawn"


def test_a_device_without_work_shows_no_picture() -> None:
    assert history_card({}, 1) == ""
    assert history_card({"idle": [Sample(1, 0.0, None, None)]}, 1) == ""


def test_names_are_escaped_and_many_services_are_counted() -> None:
    hostile = '<img src=x onerror="alert(1)">'
    card = history_card({hostile: busy(5000)}, 5000)
    assert "<img" not in card and "&lt;img" in card
    many = history_card({f"s{number:02}": busy(5000) for number in range(MAX_CHARTS + 3)}, 5000)
    assert many.count("<h3>") == MAX_CHARTS and "3 more services are not drawn" in many


def test_the_page_with_a_full_history_stays_small_and_keeps_the_policy() -> None:
    state = StatusState(version="1", name="n", device_id="D", state_dir="/", started_at=0, now=1)
    html = render(state, False, {"solder": busy(5000)}, 5000)
    assert 'id="history"' in html and not re.findall(r"<[^>]+\s(?:style|on\w+)=", html)
    assert len(html) - len(render(state)) < 12_000
