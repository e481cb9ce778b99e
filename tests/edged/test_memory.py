"""Whether one more worker fits into the memory: the arithmetic, what is read, and what workers have told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import make_package

from edged import memory
from edged.memory import BASE, FACTOR, SLACK, SPARE, Memory, Room, judge, room
from edged.plan import Choice
from edgekit.messages import Ready

MIB = 1 << 20
SIZES = st.integers(0, 1 << 40)


def machine(root: Path, available: int, total: int = 8 << 30, groups: str = "0::/\n") -> Path:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {total >> 10} kB\nMemAvailable:   {available >> 10} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def group(directory: Path, limit: str, used: int, inactive: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 7\ninactive_file {inactive}\nfile 3\n")


@given(SIZES, SIZES, SIZES, SIZES)
def test_nothing_starts_that_does_not_fit(need: int, available: int, process: int, freed: int) -> None:
    verdict = judge(need, Room(available, process), freed)
    if verdict.way == "beside":
        assert need + SPARE <= available and need <= process
    elif verdict.way == "after":
        assert need + SPARE <= available + freed and need <= process
        assert judge(need, Room(available + freed, process), 0).way == "beside"
    else:
        enough = Room(available + verdict.missing, process + verdict.missing)
        assert verdict.missing > 0 and judge(need, enough, freed).way is not None


def test_the_sentence_says_how_much_is_missing() -> None:
    verdict = judge(3 << 30, Room(1 << 30), 512 * MIB)
    assert verdict.sentence.startswith("its worker would need about 3.0 GiB of memory, 1.5 GiB more than there is")


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, 4 << 30, groups="0::/system.slice/edged.service\n")
    groups = root / "sys/fs/cgroup"
    group(groups / "system.slice/edged.service", "max", 100 * MIB)
    assert room(root).available == 4 << 30
    group(groups / "system.slice", str(600 * MIB), 500 * MIB, inactive=50 * MIB)
    assert room(root).available == 150 * MIB, "cached files can be given up"
    group(groups / "system.slice/edged.service", str(200 * MIB), 300 * MIB)
    assert room(root).available == 0


def test_a_container_sees_its_group_as_the_top_and_old_kernels_other_names(tmp_path: Path) -> None:
    root = machine(tmp_path, 4 << 30, groups="0::/../../made/elsewhere\n")
    group(root / "sys/fs/cgroup", str(1 << 30), 1000 * MIB)
    assert room(root).available == 24 * MIB
    old = machine(tmp_path / "old", 4 << 30, groups="5:cpu,memory:/a\n2:devices:/b\n")
    directory = old / "sys/fs/cgroup/memory/a"
    directory.mkdir(parents=True)
    (directory / "memory.limit_in_bytes").write_text("1000000\n")
    (directory / "memory.usage_in_bytes").write_text("400000\n")
    (directory / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 50000\n")
    assert room(old).available == 650_000


def test_one_process_may_have_a_share_of_the_machine(tmp_path: Path) -> None:
    assert room(machine(tmp_path, 1 << 30, total=2 << 30)).process <= 3 << 29


def test_a_machine_that_tells_nothing_limits_nothing(tmp_path: Path) -> None:
    assert judge(1 << 40, room(tmp_path), 0).way == "beside"


def test_files_are_a_guess_until_a_worker_has_measured(tmp_path: Path) -> None:
    package = make_package(tmp_path / "m", work=3)
    packages = {"m@1": package.root}
    size = package.sizes["model.onnx"]
    known = Memory(machine(tmp_path, 4 << 30))
    assert known.need(["m@1", "m@1"], packages) == BASE + int(FACTOR * size) + SLACK
    known.learn(Ready(services=[], base=50 * MIB, memory={"m@1": 7 * MIB}))
    assert known.need(["m@1"], packages) == 57 * MIB + SLACK
    assert known.need(["gone@1"], packages) == 50 * MIB + SLACK, "the worker says what is wrong with it"


async def test_the_verdict_is_about_the_machine_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path, BASE + SLACK + SPARE)
    known = Memory(root)
    choices = [Choice("a", "text", "m@1")]
    assert (await known.verdict(choices, {}, None)).way == "beside"
    machine(root, BASE)
    assert (await known.verdict(choices, {}, None)).way is None
    monkeypatch.setattr(memory, "_own_bytes", lambda pid: 100 * MIB)
    assert judge(known.need(["m@1"], {}), room(root), 100 * MIB).way == "after"
