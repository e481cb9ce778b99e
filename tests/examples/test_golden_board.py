"""The drawn board: what the written package finds on boards that it has never seen."""

from __future__ import annotations

from pathlib import Path

from edged.serve.inspecting import inspector, local_decision, verdict
from edgekit.packages import open_package
from edgekit.regions.header import NOTHING
from edgekit.services import parse_service
from edgekit.vision.detection.detector import Detector
from examples.golden_board import LABELS, write


def test_every_written_board_gets_the_verdict_of_its_name(tmp_path: Path) -> None:
    write(tmp_path)
    detector = Detector.load(open_package(tmp_path / "golden-board"))
    assert detector.prove() == 8
    service = parse_service((tmp_path / "golden-board.toml").read_text(), "test")
    inspect = inspector(service, detector)
    boards = sorted((tmp_path / "boards").glob("*.png"))
    assert len(boards) == 9
    for path in boards:
        kind = path.stem.partition("-")[0]
        decision = local_decision(service, inspect(path.read_bytes()), "golden-board@1", path.name)
        assert (decision.label, decision.defects) == ((kind, 1) if kind in LABELS else ("nothing", 0)), path
        assert service.decision is not None
        assert verdict(service.decision, decision, NOTHING) == ("fail" if kind in LABELS else "pass")
