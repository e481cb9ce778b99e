"""What a job can tell of the machine: its own memory, the machine's, and the hottest sensor."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from edged.hardware.host import Host
from edged.hardware.thermal import read_temperatures
from edgekit.learning.budget import Reading, Sensors

_HEAT_S = 2.0
"""Between two looks at temperatures: a sensor behind a slow bus takes milliseconds, and heat comes slowly."""


def machine(host: Host, clock: Callable[[], float] = time.monotonic) -> Sensors:
    """The sensors of a machine. `clock` gives seconds that never go back."""
    process = psutil.Process()
    looked = -_HEAT_S
    celsius: float | None = None

    def look() -> Reading:
        nonlocal looked, celsius
        now = clock()
        if now - looked >= _HEAT_S:
            looked = now
            celsius = max((one.celsius for one in read_temperatures(host)), default=None)
        return Reading(memory=process.memory_info().rss, free_memory=psutil.virtual_memory().available, celsius=celsius)

    return look
