"""Niceness of a child that has a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
CODE = (
    "import os, sys\n"
    "from edged.hardware.bench.manners import give_way\n"
    "give_way(int(sys.argv[1]))\n"
    "group = open('/proc/self/autogroup').read() if os.path.exists('/proc/self/autogroup') else ''\n"
    "print(os.nice(0), group.rpartition('nice ')[2].strip() or 0)\n"
)


def told(nice: int, *, own_session: bool) -> list[int]:
    """[niceness of the process, niceness of its session] after giving way."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(nice)],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=own_session,
        cwd=Path(__file__).resolve().parents[3],
    )
    return [int(value) for value in done.stdout.split()]


def test_its_own_niceness_goes_up() -> None:
    assert told(7, own_session=True)[0] == os.nice(0) + 7


def test_nothing_is_changed_for_none() -> None:
    assert told(0, own_session=True)[0] == os.nice(0)


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group by session")
def test_the_session_gives_way_too_if_it_is_its_own() -> None:
    assert told(7, own_session=True)[1] == 7
    # A process of the first session, which is in no group (a container's first command), reads an empty file.
    ours = int(AUTOGROUP.read_text().rpartition("nice ")[2].strip() or 0)
    assert told(7, own_session=False)[1] == ours
