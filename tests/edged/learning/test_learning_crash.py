"""SIGKILL at every step from labels to a kept model: the next run goes on, does nothing twice and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import learning_bench
import pytest
from learning_bench import FIRST, ROOT, Bench, story
from test_learning_desk import HEAD

KEPT = ["started", "accepted", "promoted", "kept", "kept"]
REFUSED = ["started", "refused", "refused", "exhausted"]
BACK = ["started", "accepted", "promoted", "rolled-back", "rolled-back", "exhausted"]
POINTS = [
    ("learning.started", KEPT),
    ("learning.made", KEPT),
    ("package.copied", KEPT),
    ("package.renamed", KEPT),
    ("learning.installed", KEPT),
    ("learning.accepted", KEPT),
    ("learning.promoted", KEPT),
    ("learning.kept", KEPT),
    ("learning.refused", REFUSED),
    ("learning.rolled-back", BACK),
]


def crash(directory: Path, point: str, end: str) -> None:
    """Run the story in a process of its own until it dies."""
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join([str(root), str(root / "tests"), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, learning_bench.__file__, str(directory), HEAD, end],
        env={**os.environ, "PYTHONPATH": path, "EDGED_CRASH_AT": point},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("point", "story_of"), POINTS, ids=[point for point, _ in POINTS])
async def test_a_power_cut_at_any_step_costs_nothing(tmp_path: Path, point: str, story_of: list[str]) -> None:
    end = next(event for event in story_of if event in ("kept", "refused", "rolled-back"))
    if point.startswith("package."):
        Bench(tmp_path, HEAD)  # the model of the definition is installed before the point counts
    crash(tmp_path, point, end)
    bench = Bench(tmp_path, HEAD)
    await story(bench, end)
    kept = [FIRST] if end == "kept" else []
    assert bench.models.refs() == [ROOT, *kept]
    assert not list((bench.state / "learning" / "jobs").iterdir())
    bench.start()
    await bench.look()
    assert await bench.events() == story_of, "every decision once"
    assert bench.state_of.learned == "".join(kept)
    assert len(await bench.samples.versions()) == len(kept)
    await bench.end()
