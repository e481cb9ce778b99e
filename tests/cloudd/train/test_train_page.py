"""The page about training: its script runs, its numbers are those of the code."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cloudd.cli import train
from cloudd.train.parts import FEWEST
from edgekit.datasets.formats import read_dataset

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "training.md").read_text("utf-8")


def test_the_script_makes_a_package(discs: Path, tmp_path: Path) -> None:
    data = read_dataset(discs)
    for one in data.pictures:
        (tmp_path / "pictures" / one.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(discs.parent / one.file, tmp_path / "pictures" / one.label)
    (script,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.strip().endswith("solder@1"), done.stdout + done.stderr


def test_every_option_with_a_default_is_explained() -> None:
    parser = argparse.ArgumentParser(prog="cloudd")
    train.add(parser.add_subparsers())
    options = set(re.findall(r"^\| `(--[\w-]+)` \|", PAGE, re.MULTILINE))
    told = {*options, "--data", "--model", "--group", "--merge", "--resume", "--register"}
    known = {f"--{name.replace('_', '-')}" for name in train.AT_BEGIN} | {"--threads", "--resume", "--data"}
    assert options <= known
    assert known - told == {"--version", "--out"}


def test_the_numbers_of_pictures_are_those_of_the_code() -> None:
    learn, choose, judge = FEWEST.values()
    assert f"at least {learn} pictures (boxes) to learn from, {choose} to choose by and {judge} to judge by" in PAGE
