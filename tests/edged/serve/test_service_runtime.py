"""One service in this process: what its client gets when what comes after the model fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NoReturn

from edged.serve.engine import Engine
from edged.serve.inspecting import inspector
from edged.serve.loading import LoadedModel
from edged.serve.service_runtime import ServiceRuntime
from edgekit.services import parse_service
from edgekit.vision.detection.detector import Detector
from tests.support.detectors import board, cell, make_detector

DEFINITION = """
name = "shorts"
task = "detection"
model = "cells"
[decision]
pass = ["nothing"]
fail = ["short"]
"""


class Broken:
    """A collaborator whose fault nobody foresaw."""

    async def settle(self, *_: object) -> NoReturn:
        raise RuntimeError("the disk is on fire")

    def sentence(self) -> str:
        return ""

    def plan_report(self) -> None:
        return None

    def facts(self) -> None:
        return None

    def audited(self) -> tuple[int, int]:
        return 0, 0

    def measure(self, *_: object) -> None:
        """It plans nothing."""


async def test_the_edges_own_boxes_stand_when_the_policy_fails(tmp_path: Path) -> None:
    package = make_detector(tmp_path / "cells")
    service, detector = parse_service(DEFINITION, "test"), Detector.load(package)
    engine = Engine(1)
    runtime = ServiceRuntime(
        service, LoadedModel(package, detector), inspector(service, detector), "", engine, Broken(), {}, lambda *_: None
    )
    decision = await runtime.inspect(
        board((1, 2, "short", 0.9), (3, 3, "open", 0.2)),
        sample_id="x", captured_at=1e9, serial="7", deadline=time.monotonic() + 60,
    )  # fmt: skip
    await engine.stop()
    assert (decision.label, decision.decided, decision.verdict) == ("short", "edge-degraded", "fail")
    assert decision.reason == "the hard-sample policy failed: the disk is on fire"
    assert (decision.sample_id, decision.serial, decision.captured_at) == ("x", "7", 1e9)
    assert [(one.label, one.box) for one in decision.regions] == [("short", cell(1, 2))]
    report = runtime.report()
    assert (report.errors, report.labels) == (1, {"short": 1})
