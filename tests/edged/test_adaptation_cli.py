"""Adaptation as people meet it: `edged adapt`, the Hardware section of `edged doctor`, a recorded board."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.edged import Edged, wait_for
from support.models import make_package

from edged.hardware.facts import gather
from edged.hardware.host import RealHost, TreeHost
from edged.status.hardware import HardwareReport


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    child = {name: value for name, value in os.environ.items() if not name.startswith(("EDGED_", "STATE_"))}
    return subprocess.run(
        [sys.executable, "-m", "edged", *arguments], capture_output=True, text=True, timeout=180, env=child
    )


@pytest.fixture(scope="module")
def edged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edged]:
    directory = tmp_path_factory.mktemp("adapt")
    make_package(directory / "package", kind="conv", work=8)
    with Edged(directory / "state") as edged:
        edged.add_model(directory / "package")
        edged.add_service('name = "solder"\nmodel = "brightness"\ndeadline_ms = 5000\n')
        yield edged


def test_doctor_shows_the_way_from_facts_to_choice(edged: Edged) -> None:
    state = str(edged.state)
    wait_for(lambda: edged.client.get("/hardware", HardwareReport).state.known)
    done = command("--state", state, "doctor")
    assert "\nHardware\n" in done.stdout and "  CPU       " in done.stdout and "  profile   " in done.stdout
    assert "brightness@1 for latency (solder): not measured yet" in done.stdout
    assert "running   on the CPU in the safe way" in done.stdout
    assert "edged adapt" in done.stdout, "it is switched off here, so it says how"
    done = command("--state", state, "adapt")
    assert done.returncode == 0, done.stderr
    assert re.search(r"brightness@1 for latency: model.onnx by onnxruntime on cpu, \d thread", done.stdout)
    assert done.stderr == "", "progress is for terminals"
    done = command("--state", state, "doctor")
    assert "chosen by measurement" in done.stdout and "<- chosen" in done.stdout and "because   " in done.stdout
    report = json.loads(command("--state", state, "doctor", "--json").stdout)
    assert {finding["id"] for finding in report["findings"]} >= {"daemon", "models"}
    (model,) = report["hardware"]["state"]["models"]
    assert model["phase"] == "chosen" and model["measurements"] and report["hardware"]["facts"]["architecture"]
    metrics = edged.client.text("/metrics")
    assert 'edged_setting_info{service="solder",model="brightness@1"' in metrics
    assert "edged_throttled 0" in metrics or "edged_throttled 1" in metrics


def test_doctor_without_a_daemon_reads_the_stored_choices(edged: Edged, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "copy"
    other.mkdir()
    for name in ("hardware", "models", "services"):
        if (edged.state / name).exists():
            shutil.copytree(edged.state / name, other / name)
    done = command("--state", str(other), "doctor", "--json")
    (model,) = json.loads(done.stdout)["hardware"]["state"]["models"]
    assert model["model"] == "brightness@1" and model["services"] == ["solder"]


def test_an_unknown_service_is_an_error(edged: Edged) -> None:
    done = command("--state", str(edged.state), "adapt", "absent")
    assert done.returncode == 1
    assert "there is no service 'absent'" in done.stderr


def test_a_recorded_board_is_the_same_board_without_names(tmp_path: Path) -> None:
    file = tmp_path / "board.tree"
    done = command("doctor", "--record", str(file))
    assert done.returncode == 0 and "Look through it" in done.stdout
    text = file.read_text()
    recorded, here = gather(TreeHost(text)), gather(RealHost())
    assert recorded.cpu.flags == here.cpu.flags and recorded.memory_total == here.memory_total
    assert command("doctor", "--record", "-").stdout.startswith("# kind: recorded")
    done = command("doctor", "--record", str(tmp_path / "no" / "board.tree"))
    assert done.returncode == 1 and "cannot be written" in done.stderr
