"""`cloudd compress` of a registered model, beside a running daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgekit.packages import Package
from tests.support.cloud import Cloud


def cloudd(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloudd.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_registered_model_is_compressed_by_its_name_and_registered_again(
    solder: Package, joints: Path, tmp_path: Path
) -> None:
    options = ("--data", joints, "--out", tmp_path, "--variants", "fp16", "--register")
    with Cloud(tmp_path / "cloud") as running:
        assert cloudd("models", "add", solder.root, "--state", running.state).returncode == 0
        done = cloudd("compress", "solder-large", *options, "--state", running.state)
        assert done.returncode == 0, done.stderr
        assert "solder-large@1-c1" in done.stdout and "and registered" in done.stdout
        newest = json.loads(cloudd("models", "show", "solder-large", "--json", "--state", running.state).stdout)
        assert newest["version"] == "1-c1"
        assert "compressed/lineage.json" in [file["path"] for file in newest["files"]]
        unknown = cloudd("compress", "solder-lrage", *options, "--state", running.state)
        assert unknown.returncode == 1 and "no model 'solder-lrage' is registered" in unknown.stderr
    gone = cloudd("compress", "solder-large", *options, "--state", tmp_path / "cloud" / "nowhere")
    assert gone.returncode == 3
