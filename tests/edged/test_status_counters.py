"""/metrics of a real daemon while its worker is swapped and killed under load: no counter ever goes back."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
import urllib.request
from pathlib import Path

from support.edged import Edged, wait_for
from support.models import SIDE, make_package, picture

COUNTERS = (
    "edged_decisions_total",
    "edged_latency_seconds_count",
    "edged_verdicts_total",
    "edged_runs_total",
    "nv_inference_request_success",
)
TENSOR = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 3, SIDE, SIDE], "datatype": "FP32", "data": [0.5] * (3 * SIDE * SIDE)}]}
).encode()
LABELS = ["dark", "dim", "bright"]


def definition(deadline: int) -> str:
    rules = '[decision]\npass = ["bright"]\nfail = ["dark"]'
    return f'name = "solder"\nmodel = "brightness"\ndeadline_ms = {deadline}\n{rules}\n'


class Scraper(threading.Thread):
    """Reads /metrics ten times a second and notes every step back."""

    def __init__(self, page: str) -> None:
        super().__init__(daemon=True)
        self.page, self.over = page, threading.Event()
        self.highest: dict[str, float] = {}
        self.steps_back: list[str] = []

    def run(self) -> None:
        while not self.over.wait(0.1):
            with urllib.request.urlopen(f"http://{self.page}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(COUNTERS))
            for series, highest in self.highest.items():
                if float(found.get(series, "nan")) != float(found.get(series, "nan")):
                    self.steps_back.append(f"{series} is gone")
                elif float(found[series]) < highest:
                    self.steps_back.append(f"{series} fell from {highest} to {found[series]}")
            self.highest.update({series: float(value) for series, value in found.items()})

    def total(self, name: str) -> float:
        return sum(value for series, value in self.highest.items() if re.match(rf"{name}\b", series))


class Line(threading.Thread):
    """Posts pictures one after the other, each on its own connection.

    `answered` counts what was decided, `inferred` what the bare model answered.
    """

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.over, self.answered, self.inferred = address, threading.Event(), 0, 0

    def run(self) -> None:
        pictures = [picture(brightness) for brightness in (0.1, 0.5, 0.9)]
        while not self.over.wait(0.01):
            connection = http.client.HTTPConnection(self.address, timeout=20)
            try:
                connection.request("POST", "/v1/services/solder/inspect", pictures[self.answered % 3])
                reply = connection.getresponse()
                reply.read()
                self.answered += reply.status == 200
                connection.request("POST", "/v2/models/brightness/infer", TENSOR)
                self.inferred += connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                pass  # the killed worker's own
            finally:
                connection.close()


def test_counters_never_fall_over_swaps_and_a_crash(tmp_path: Path) -> None:
    make_package(tmp_path / "package", "brightness", labels=LABELS)
    with Edged(tmp_path / "state") as edged:
        edged.add_model(tmp_path / "package")
        edged.add_service(definition(5000))
        addresses = edged.status().addresses
        scraper, line = Scraper(addresses.page), Line(addresses.inference)
        line.start()
        wait_for(lambda: line.answered > 20)
        scraper.start()
        for deadline in (6000, 7000):
            edged.add_service(definition(deadline))  # a successor takes over, and the worker before drains
            time.sleep(1.5)
        line.over.set()
        line.join()
        wait_for(lambda: scraper.total("edged_decisions_total") >= line.answered, 15)
        assert scraper.total("edged_decisions_total") == line.answered, "each is counted once, whoever made it"
        wait_for(lambda: scraper.total("nv_inference_request_success") == line.inferred, 5)
        pid = edged.status().worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: edged.status().worker.pid not in (None, pid))
        edged.wait_ready("solder")
        time.sleep(0.5)
        scraper.over.set()
        scraper.join()
        assert scraper.steps_back == []
        assert scraper.total("edged_decisions_total") == line.answered
        assert scraper.total("edged_verdicts_total") == line.answered
        edged.stop()
