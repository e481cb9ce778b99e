"""The Hardware card, its metrics and its words: everything is there, and everything from outside is escaped."""

from __future__ import annotations

import msgspec
from test_status_server import example_state

from edged.cli import hardware_text
from edged.hardware.shapes import CpuFacts, DeviceNode, Facts
from edged.status import metrics
from edged.status.hardware import (
    HardwareReport,
    HardwareState,
    LostState,
    MeasuredState,
    ModelHardware,
    Temperature,
    TriedState,
)
from edged.status.hardware_page import hardware_card
from edged.status.page import render

HOSTILE = "<script>alert(1)</script>\"'\x1b[2J"


def hardware(text: str = "npu") -> HardwareState:
    row = MeasuredState(
        setting=text, candidate=text, p50_ms=1.25, p95_ms=2.5, throughput=640, cpu_ms=0.4, rss_mb=88, chosen=True
    )
    model = ModelHardware(
        model=text, objective="latency", services=[text], phase="chosen", detail=text, running=text,
        setting={"variant": text, "runtime": "rknnlite", "provider": "npu", "threads": "1", "workers": "2"},
        chosen=text, reasons=[text], accepted=[text], at=90.0, measurements=[row] * 12,
        rejected=[TriedState(candidate=text, reason=text, remedy=text)],
        failed=[TriedState(candidate=text, reason=text)],
    )  # fmt: skip
    return HardwareState(
        known=True, name=text, accelerators=[text], profiles=[text], untested=[text], explanations=[text],
        problems=[text], temperatures=[Temperature(zone=text, celsius=71.5)], soft_c=80, hard_c=95, throttled=[text],
        level=1, busy=text, lost=[LostState(candidate=text, services=[text], reason=text, since=50.0, failures=2)],
        models=[model],
    )  # fmt: skip


def test_the_card_has_device_heat_loss_and_the_measured_table() -> None:
    card = hardware_card(hardware(), 100.0)
    for expected in ("1.2 ms", "2.5 ms", "640/s", "npu 72 °C", "lost", "1 step below", "chosen by measurement"):
        assert expected in card, expected
    assert card.count("1.2 ms") == 8, "the page shows the best ones"
    assert "has not been looked at" in hardware_card(HardwareState(), 1.0)
    off = hardware_card(msgspec.structs.replace(hardware(), mode="never", accelerators=[], lost=[]), 1.0)
    assert "off" in off and "none: models run on the CPU" in off


def test_it_is_on_the_page_and_escaped() -> None:
    state = msgspec.structs.replace(example_state(), hardware=hardware(HOSTILE))
    html = render(state)
    assert 'id="hardware"' in html
    assert "<script>alert" not in html and "&lt;script&gt;" in html


def test_the_metrics_have_temperature_and_setting() -> None:
    text = metrics.render(msgspec.structs.replace(example_state(), hardware=hardware()))
    assert 'edged_zone_temperature_celsius{zone="npu"} 71.5' in text
    assert 'edged_setting_info{service="npu",model="npu",variant="npu",runtime="rknnlite",provider="npu"' in text
    assert "edged_throttled 1" in text and "edged_heat_level 1" in text and "edged_accelerators_lost 1" in text


def test_the_doctor_prints_every_step_without_control_characters() -> None:
    facts = Facts(
        architecture="aarch64", kernel="6.12", memory_total=4 << 30, governor="performance",
        cpu=CpuFacts(count=8, allowed=[0, 1], name="Cortex"), cpu_quota=1.5,
        nodes=[DeviceNode(path="/dev/npu0", mode=0o660, group="render", openable=False, driver="rknpu")],
    )  # fmt: skip
    lines = list(hardware_text.lines(HardwareReport(facts=facts, state=hardware(HOSTILE))))
    text = "\n".join(lines)
    assert "\x1b" not in text
    for expected in (
        "8 CPUs, 2 of them allowed, 1.5 CPUs' time", "may not open it (group render)", "LOST", "THROTTLED", "HOT",
        "rejected", "->", "failed", "<- chosen", "because", "untested",
    ):  # fmt: skip
        assert expected in text, expected
    empty = list(hardware_text.lines(HardwareReport(state=HardwareState(known=True))))
    assert any("nothing to choose" in line for line in empty)
