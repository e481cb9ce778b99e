"""Whether the services are busy, and whether their models are slower than they were when they were measured."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from edged.hardware.settings import Choice, Setting
from edged.worker import Worker

BUSY_CPU = 0.3
"""Share of the allowed CPUs that the worker takes from which measuring would disturb it, and be disturbed."""
SLOW = 3.0
"""Times the measured 95th percentile from which a model is slow; several callers at once explain less than that."""
SLOW_MS = 5.0


class Load:
    """Looks at one worker after the other."""

    def __init__(self) -> None:
        self._process: psutil.Process | None = None

    def busy(self, worker: Worker | None, cpus: int) -> str:
        """Why measuring would disturb, or be disturbed; "" if it would not. Compares with the last call."""
        if worker is None or not worker.alive or worker.report is None:
            return "the worker is starting"
        try:
            if self._process is None or self._process.pid != worker.pid:
                self._process = psutil.Process(worker.pid)
                self._process.cpu_percent(None)
                return "the worker is starting"
            share = self._process.cpu_percent(None) / 100 / max(1, cpus)
        except psutil.Error:
            return "the worker is ending"
        if share > BUSY_CPU:
            return f"the services take {share:.0%} of the CPUs"
        if any(service.waiting for service in worker.report.services):
            return "pictures are waiting"
        return ""


def slow_services(worker: Worker | None, used: Callable[[str], tuple[Choice | None, Setting | None]]) -> frozenset[str]:
    """Services whose model takes far longer than was measured. `used` gives choice and setting of a service."""
    found = set()
    for report in worker.report.services if worker is not None and worker.report is not None else []:
        choice, setting = used(report.name)
        if choice is None or setting is None or report.infer_p95_ms is None:
            continue
        known = next((one.p95_ms for one in choice.measurements if one.setting == setting), None)
        if known is not None and report.infer_p95_ms > SLOW * known + SLOW_MS:
            found.add(report.name)
    return frozenset(found)
