"""What a device tells of its power, heat and health."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.federation.machine import Told, read_health, teller, write_health
from edged.hardware.host import TreeHost

BATTERY = {"BAT0/type": "Battery", "BAT0/capacity": "47"}


def host(supplies: dict[str, str], milli: str = "") -> TreeHost:
    files = {f"/sys/class/power_supply/{name}": text for name, text in supplies.items()}
    if milli:
        zone = "/sys/class/thermal/thermal_zone0"
        files |= {f"{zone}/type": "cpu", f"{zone}/temp": milli}
    return TreeHost("\n".join(f"f\t{path}\t{json.dumps(text)}" for path, text in files.items()))


@pytest.mark.parametrize(
    ("supplies", "power", "battery"),
    [
        ({}, "mains", None),
        ({"AC/type": "Mains", "AC/online": "1"}, "mains", None),
        ({**BATTERY, "BAT0/status": "Discharging"}, "battery", 0.5),
        ({**BATTERY, "BAT0/status": "Charging"}, "mains", 0.5),
        ({**BATTERY, "BAT0/status": "Discharging", "AC/type": "Mains", "AC/online": "1"}, "mains", 0.5),
        ({**BATTERY, "BAT0/status": "Discharging", "AC/type": "Mains", "AC/online": "0"}, "battery", 0.5),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging", "BAT0/capacity": "900"}, "battery", 1.0),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging", "BAT0/capacity": "x"}, "battery", None),
        ({"mouse/type": "Battery", "mouse/scope": "Device", "mouse/status": "Discharging"}, "mains", None),
    ],
)
def test_power_is_what_the_kernel_says_and_a_machine_without_a_battery_is_on_mains(
    supplies: dict[str, str], power: str, battery: float | None, tmp_path: Path
) -> None:
    told = teller(host(supplies), tmp_path)()
    assert (told.power, told.battery) == (power, battery)


def test_temperatures_are_told_in_steps_of_five_degrees(tmp_path: Path) -> None:
    assert teller(host({}, "63400"), tmp_path)().celsius == 65.0
    assert teller(host({}), tmp_path)().celsius is None


def test_the_child_hears_the_health_that_the_supervisor_wrote_and_no_nonsense(tmp_path: Path) -> None:
    assert read_health(tmp_path) == "ok"
    write_health(tmp_path, "warning")
    assert teller(host({}), tmp_path)() == Told(health="warning", power="mains")
    (tmp_path / "health").write_bytes(b"\xff" * 1000)
    assert read_health(tmp_path) == "ok"
