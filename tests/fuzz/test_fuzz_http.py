"""The fuzz target itself: on made-up input always, guided by coverage where atheris is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.fuzz.fuzz_http import one_input
from tests.support.http_junk import junk


@settings(max_examples=300, deadline=None)
@given(junk)
def test_the_target_takes_junk(data: bytes) -> None:
    one_input(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_coverage_guided(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_http", "-runs=20000", "-max_total_time=30", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-3000:]
