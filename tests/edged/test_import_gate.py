"""The always-on process stays small: what it imports, what it weighs, what it costs to start."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
from support.edged import Edged, wait_for

from edged.supervisor import RSS_BUDGET

HEAVY = ("numpy", "onnxruntime", "cv2", "ai_edge_litert", "safetensors", "sqlalchemy", "obstore", "cloudd")
START_CPU_S = 1.0
"""CPU seconds to READY on x86."""


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(name for name in sys.modules if '.' not in name))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_supervisor_imports_the_core_only() -> None:
    loaded = modules_after(
        "import edged.daemon, edged.supervisor, edged.link.service, edged.status.page, edged.status.doctor\n"
        "from edged.cli.main import build_parser\nbuild_parser()"
    )
    assert "aiohttp" in loaded and "zeroconf" in loaded, "the gate looks at the real thing"
    assert not loaded & set(HEAVY)


def test_the_first_worker_is_spawned_before_the_heavy_imports() -> None:
    assert not modules_after("import edged.daemon") & {*HEAVY, "aiohttp", "zeroconf", "cryptography"}


def test_the_command_line_starts_without_a_web_framework() -> None:
    loaded = modules_after("from edged.cli.main import build_parser\nbuild_parser()")
    assert not loaded & {*HEAVY, "aiohttp", "zeroconf", "cryptography"}


def test_the_idle_supervisor_keeps_its_memory_budget(tmp_path: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        process = psutil.Process(edged.process.pid)
        wait_for(lambda: edged.status().worker.state == "ready", 60)
        cpu = process.cpu_times()
        assert cpu.user + cpu.system < 3 * START_CPU_S, "start, the polling of this test, and the worker's start"
        time.sleep(1.0)
        assert process.memory_info().rss <= RSS_BUDGET


def test_ready_within_a_second_of_cpu(tmp_path: Path) -> None:
    # A shared machine may be half as fast for a while, so the best of three starts counts.
    assert any(_start_cpu_s(tmp_path / str(attempt)) <= START_CPU_S for attempt in range(3))


def _start_cpu_s(directory: Path) -> float:
    from test_notify import Manager

    directory.mkdir()
    manager = Manager(directory)
    with Edged(directory / "state", environ={"NOTIFY_SOCKET": str(manager.path)}, wait=False) as edged:
        process = psutil.Process(edged.process.pid)
        wait_for(lambda: manager.heard("READY=1"), every_s=0.01)
        cpu = process.cpu_times()
        return cpu.user + cpu.system
