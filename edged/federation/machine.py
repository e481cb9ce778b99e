"""What this device tells of itself in a job that asks for it: power, battery, heat, health; no finer than is needed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edged.hardware.host import Host
from edged.hardware.reading import number, text
from edged.hardware.thermal import read_temperatures
from edgekit import atomic
from edgekit.messages import Level

HEALTH = "health"
"""File of the federation's folder: the supervisor writes it, the child process reads it."""
_LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
_OUTLETS = ("Mains", "USB", "Wireless")
_STEP = 5.0
"""Degrees."""


@dataclass(frozen=True)
class Told:
    """As `Standing` has it."""

    health: Level = "ok"
    power: Literal["mains", "battery", "unknown"] = "unknown"
    battery: float | None = None
    celsius: float | None = None


def teller(host: Host, folder: Path) -> Callable[[], Told]:
    """Looks at the machine whenever it is asked; blocks for milliseconds."""

    def tell() -> Told:
        power, battery = _power(host)
        hottest = max((one.celsius for one in read_temperatures(host)), default=None)
        celsius = None if hottest is None else min(200.0, max(-100.0, _STEP * round(hottest / _STEP)))
        return Told(health=read_health(folder), power=power, battery=battery, celsius=celsius)

    return tell


def _power(host: Host) -> tuple[Literal["mains", "battery", "unknown"], float | None]:
    """Where the power comes from, and the charge of the fullest battery in tenths."""
    kinds: dict[str, str] = {}
    for path in host.glob("/sys/class/power_supply/*/type")[:64]:
        supply = path.removesuffix("/type")
        if text(host, f"{supply}/scope") != "Device":  # the battery of a mouse
            kinds[supply] = text(host, path)
    batteries = [supply for supply, kind in kinds.items() if kind == "Battery"]
    if not batteries:
        return "mains", None
    charges = [full for supply in batteries if (full := number(host, f"{supply}/capacity")) is not None]
    charge = round(min(100.0, max(0.0, max(charges))) / 10) / 10 if charges else None
    online = any(number(host, f"{supply}/online") for supply, kind in kinds.items() if kind in _OUTLETS)
    if online or not any(text(host, f"{supply}/status") == "Discharging" for supply in batteries):
        return "mains", charge
    return "battery", charge


@functools.cache
def has_aes(path: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has AES instructions, as the kernel says."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file.read(65_536).splitlines():
            if line.split(b":")[0].strip().lower() in (b"flags", b"features"):
                return b"aes" in line.split()
    return False


def write_health(folder: Path, level: Level) -> None:
    """Tell the child process how the device is. Raises OSError."""
    atomic.write_file(folder / HEALTH, level.encode())


def read_health(folder: Path) -> Level:
    """What the supervisor said last; "ok" if it has said nothing."""
    with contextlib.suppress(OSError):
        said = (folder / HEALTH).read_bytes()[:16].decode("ascii", "replace")
        return next((level for level in _LEVELS if level == said), "ok")
    return "ok"
