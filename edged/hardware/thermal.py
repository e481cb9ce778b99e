"""How hot the machine is now, and what holds it back. Read anew each time, unlike the facts."""

from __future__ import annotations

import re

import msgspec

from edged.hardware.host import Host
from edged.hardware.reading import number, text

_SENSOR_LIMIT = 256
# Sensors that are off or broken report 0 K, 255 degrees or worse. No board lives outside this range.
_COLDEST, _HOTTEST = -55.0, 200.0
# What a cooling device of such a type limits is speed. Fans and watchdogs are cooling devices too.
_SLOWING = re.compile(r"(?i)(thermal-)?(cpufreq|devfreq|cpu|gpu|npu|processor)\b.*|.*intel_powerclamp.*")
_PI_BITS = {
    0: "The power supply gives too little voltage, which slows the machine down: use a stronger one.",
    1: "The firmware caps the CPU's frequency.",
    2: "The firmware throttles the CPU because it is too hot.",
    3: "The soft temperature limit is reached.",
}
"""Raspberry Pi: bits of `get_throttled` that say what is the case now; 16 to 19 say what was since the start."""


class Reading(msgspec.Struct, frozen=True):
    """A temperature in degrees Celsius. `zone` is the type of a thermal zone, or "chip/label" of a sensor chip."""

    zone: str
    celsius: float


def read_temperatures(host: Host) -> list[Reading]:
    """All temperatures that can be read now. A sensor that is gated (EAGAIN), slow or absurd is left out."""
    found = []
    for path in host.glob("/sys/class/thermal/thermal_zone*/type")[:_SENSOR_LIMIT]:
        found += _reading(host, text(host, path, 64), path.removesuffix("type") + "temp")
    for path in host.glob("/sys/class/hwmon/hwmon*/temp*_input")[:_SENSOR_LIMIT]:
        chip, _, sensor = path.rpartition("/")
        label = text(host, f"{chip}/{sensor.removesuffix('_input')}_label", 64) or sensor.removesuffix("_input")
        found += _reading(host, f"{text(host, f'{chip}/name', 64)}/{label}", path)
    for path in host.glob("/sys/class/apex/apex_*/temp")[:_SENSOR_LIMIT]:
        found += _reading(host, "apex", path)
    return found


def throttled(host: Host) -> list[str]:
    """What slows the machine down at this moment, one sentence each; empty if nothing does."""
    return [*dict.fromkeys([*_pi(host), *_cooling(host), *_trips(host)])]


def _reading(host: Host, zone: str, path: str) -> list[Reading]:
    value = number(host, path)
    if value is None or not zone or not _COLDEST <= value / 1000 <= _HOTTEST:
        return []
    return [Reading(zone, value / 1000)]


def _pi(host: Host) -> list[str]:
    found = []
    for path in host.glob("/sys/devices/platform/soc*/*firmware*/get_throttled")[:4]:
        bits = text(host, path, 16)
        if re.fullmatch("(0x)?[0-9a-fA-F]{1,8}", bits):
            found += [sentence for bit, sentence in _PI_BITS.items() if int(bits, 16) >> bit & 1]
    for path in host.glob("/sys/class/hwmon/hwmon*/in0_lcrit_alarm")[:_SENSOR_LIMIT]:
        chip = path.rpartition("/")[0]
        if text(host, f"{chip}/name") == "rpi_volt" and (number(host, path) or 0) > 0:
            found.append(_PI_BITS[0])
    return found


def _cooling(host: Host) -> list[str]:
    found = []
    for path in host.glob("/sys/class/thermal/cooling_device*/type")[:_SENSOR_LIMIT]:
        kind = text(host, path, 64)
        device = path.removesuffix("/type")
        step, steps = number(host, f"{device}/cur_state") or 0, number(host, f"{device}/max_state") or 0
        if step > 0 and _SLOWING.fullmatch(kind):
            found.append(f"The kernel slows {kind} down because of heat (step {step} of {steps}).")
    return found


def _trips(host: Host) -> list[str]:
    found = []
    for path in host.glob("/sys/class/thermal/thermal_zone*/trip_point_*_type")[:_SENSOR_LIMIT]:
        if text(host, path) not in ("passive", "hot", "critical"):
            continue
        zone = path.rpartition("/")[0]
        trip = number(host, path.removesuffix("_type") + "_temp") or 0
        for reading in _reading(host, text(host, f"{zone}/type", 64), f"{zone}/temp"):
            # Trips at or below freezing are switched off.
            if 0 < trip / 1000 <= reading.celsius:
                found.append(f"{reading.zone} has {reading.celsius:.0f} °C; its limit is {trip / 1000:.0f} °C.")
    return found
