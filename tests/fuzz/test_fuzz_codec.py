"""The codec's fuzz target: on made-up input always, guided by coverage where atheris is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_codec import SEEDS, one_input


@settings(max_examples=300, deadline=None)
@example(SEEDS[0])
@example(SEEDS[1])
@example(SEEDS[2])
@given(st.one_of(st.binary(max_size=400), st.tuples(st.sampled_from(SEEDS), st.binary(max_size=20)).map(b"".join)))
def test_the_target_holds(data: bytes) -> None:
    one_input(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_guided_by_coverage(tmp_path: Path) -> None:
    for number, seed in enumerate(SEEDS):
        (tmp_path / str(number)).write_bytes(seed)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.fuzz.fuzz_codec", "-runs=20000", "-timeout=5", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
