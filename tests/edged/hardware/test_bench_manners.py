"""Niceness of a child that has a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.hardware.bench.manners import leave_a_cpu

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


def allowed_after(tmp_path: Path, before: set[int], capacities: dict[int, int]) -> tuple[int, set[int]]:
    """What `leave_a_cpu` says and leaves to a thread that had `before`."""
    for cpu, capacity in capacities.items():
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")

    def inside() -> tuple[int, set[int]]:
        os.sched_setaffinity(0, before)  # of this thread only
        return leave_a_cpu(tmp_path), os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(inside).result()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU only")
def test_the_strongest_cpu_is_left_to_the_line(tmp_path: Path) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    assert allowed_after(tmp_path, {first, second}, {first: 1024, second: 462}) == (1, {second})


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU only")
def test_of_equal_cpus_one_is_left(tmp_path: Path) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    assert allowed_after(tmp_path, {first, second}, {}) == (1, {first})


def test_the_only_cpu_is_kept(tmp_path: Path) -> None:
    only = min(os.sched_getaffinity(0))
    assert allowed_after(tmp_path, {only}, {}) == (1, {only})
