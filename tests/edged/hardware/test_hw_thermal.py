"""Temperatures and throttling as the machine states them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.hardware.host import TreeHost
from edged.hardware.thermal import Reading, read_temperatures, throttled

FIXTURES = Path(__file__).parents[2] / "fixtures" / "hardware"


def tree(name: str) -> TreeHost:
    return TreeHost((FIXTURES / f"{name}.tree").read_text())


def test_gated_zones_are_left_out() -> None:
    zones = {reading.zone: reading.celsius for reading in read_temperatures(tree("jetson-orin-nano"))}
    assert zones == {
        "cpu-thermal": 49.687,
        "gpu-thermal": 50.531,
        "soc0-thermal": 50.0,
        "tj-thermal": 50.781,
    }


def test_sensor_chips_count_too() -> None:
    assert read_temperatures(tree("coral-usb")) == [Reading("coretemp/Package id 0", 58.0)]
    apex = TreeHost('f\t/sys/class/apex/apex_0/temp\t"61550\\n"')
    assert read_temperatures(apex) == [Reading("apex", 61.55)]


@pytest.mark.parametrize("value", ["-273150", "255000", "hot", "", "1e5"])
def test_absurd_values_are_left_out(value: str) -> None:
    zone = "/sys/class/thermal/thermal_zone0"
    assert read_temperatures(TreeHost(f'f\t{zone}/type\t"cpu"\nf\t{zone}/temp\t"{value}"')) == []


def test_a_pi_with_a_weak_power_supply_says_so_once() -> None:
    power, heat = throttled(tree("rpi5-hailo8"))
    assert "power supply" in power
    assert "too hot" in heat


def test_cooling_devices_and_trips_say_what_slows() -> None:
    assert throttled(tree("qcs6490")) == [
        "The kernel slows cpufreq-cpu0 down because of heat (step 3 of 15).",
        "cpu3-thermal has 91 °C; its limit is 90 °C.",
    ]


def test_a_fan_at_work_is_no_throttling() -> None:
    for name in ("core-ultra", "rk3588-bsp", "x86-vm", "imx8mp"):
        assert throttled(tree(name)) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["type", "temp", "cur_state", "max_state"]), st.text())))
def test_garbage_gives_sentences_or_nothing(entries: list[tuple[int, str, str]]) -> None:
    lines = []
    for number, name, value in entries:
        quoted = '"' + "".join(letter for letter in value if letter.isprintable() and letter not in '"\\') + '"'
        lines.append(f"f\t/sys/class/thermal/thermal_zone{number}/{name}\t{quoted}")
        lines.append(f"f\t/sys/class/thermal/cooling_device{number}/{name}\t{quoted}")
    host = TreeHost("\n".join(lines))
    assert all(-55 <= reading.celsius <= 200 for reading in read_temperatures(host))
    assert all(isinstance(sentence, str) for sentence in throttled(host))
