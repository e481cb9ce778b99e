"""What the device is and how it feels, read at most every five seconds and only when somebody asks."""

from __future__ import annotations

import os
import platform
import socket
import time
from pathlib import Path

import psutil

from edged.status.state import Machine

SAMPLE_S = 5.0
"""Reading sensors more often loads a Raspberry Pi 3 for nothing."""
_MODEL_FILES = ("/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name")


class MachineSampler:
    """Caches one sample. The directory is any on the file system whose space counts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._model = machine_model()
        self._sample = Machine()
        self._at = -SAMPLE_S
        psutil.cpu_percent(None)  # the first call has nothing to compare with

    def sample(self) -> Machine:
        """The machine, not older than SAMPLE_S."""
        now = time.monotonic()
        if now - self._at >= SAMPLE_S:
            self._sample, self._at = self._read(), now
        return self._sample

    def _read(self) -> Machine:
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._directory))
        return Machine(
            hostname=socket.gethostname(),
            architecture=platform.machine(),
            model=self._model,
            cpus=len(os.sched_getaffinity(0)),
            cpu_percent=psutil.cpu_percent(None),
            memory_total=memory.total,
            memory_available=memory.available,
            disk_total=disk.total,
            disk_free=disk.free,
            temperature_c=hottest(),
        )


def machine_model() -> str:
    """Board or product name, else the CPU's name, else ""."""
    for name in _MODEL_FILES:
        try:
            text = Path(name).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
        if text:
            return text[:100]
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()[:100]
    except OSError:
        pass
    return ""


def hottest() -> float | None:
    """The hottest sensor in degrees Celsius, None if the machine shows none."""
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, AttributeError):
        return None
    readings = [reading.current for group in sensors.values() for reading in group if reading.current]
    return max(readings) if readings else None
