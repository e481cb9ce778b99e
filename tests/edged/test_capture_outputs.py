"""Files of lines: durable lines, torn lines, rotation, a full disk, two writers."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from edged.capture.outputs import OutputError, lines, tail_lines
from edged.capture.outputs.lines import LineFile
from edgekit.messages import Level


class Events(list[tuple[Level, str, str]]):
    def __call__(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self.append((level, code, text))
        assert passing == code.startswith("output-lost:"), "what is lost is no state that could be over"


async def until(condition: object, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def test_lines_arrive_in_order_and_survive_close(tmp_path: Path) -> None:
    path = tmp_path / "made" / "out.jsonl"
    output = LineFile(path, Events())
    for number in range(500):
        output.write(b'{"n":%d}' % number)
    await output.close()
    assert path.read_bytes() == b"".join(b'{"n":%d}\n' % number for number in range(500))


async def test_durable_write_is_in_the_file_when_it_returns(tmp_path: Path) -> None:
    output = LineFile(tmp_path / "out.jsonl", Events())
    await output.write_durably(b"one")
    assert (tmp_path / "out.jsonl").read_bytes() == b"one\n"
    await output.close()
    with pytest.raises(OutputError, match="closed"):
        await output.write_durably(b"two")


async def test_a_torn_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"whole":1}\n{"torn":')
    output = LineFile(path, Events())
    await output.write_durably(b'{"next":1}')
    await output.close()
    assert path.read_bytes() == b'{"whole":1}\n{"next":1}\n'


async def test_a_long_torn_line_alone_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"x" * 200_000)
    output = LineFile(path, Events())
    await output.write_durably(b"line")
    await output.close()
    assert path.read_bytes() == b"line\n"


async def test_a_rotated_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = LineFile(path, Events())
    await output.write_durably(b"before")
    path.rename(tmp_path / "out.jsonl.1")
    await output.write_durably(b"after")
    path.unlink()
    await output.write_durably(b"last")
    await output.close()
    assert (tmp_path / "out.jsonl.1").read_bytes() == b"before\n"
    assert path.read_bytes() == b"last\n"


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious\n")
    (tmp_path / "out.jsonl").symlink_to(target)
    events = Events()
    output = LineFile(tmp_path / "out.jsonl", events)
    output.write(b"line")
    await until(lambda: events)
    await output.close()
    assert target.read_bytes() == b"precious\n"


async def test_two_writers_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    both = [LineFile(path, Events()), LineFile(path, Events())]
    await asyncio.gather(*(both[n % 2].write_durably(b"%04d" % n + b"x" * 3000) for n in range(200)))
    for output in both:
        await output.close()
    written = path.read_bytes().splitlines()
    assert sorted(line[:4] for line in written) == [b"%04d" % n for n in range(200)]
    assert all(len(line) == 3004 for line in written)


async def test_full_disk_waits_in_memory_reports_once_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "RETRY_S", 0.05)
    path = tmp_path / "out.jsonl"
    events = Events()
    output = LineFile(path, events)
    await output.write_durably(b"first")
    real_write = os.write
    full = True

    def write(descriptor: int, data: memoryview) -> int:
        if full and os.fstat(descriptor).st_ino == path.stat().st_ino:
            if len(data) > 3:
                return real_write(descriptor, data[:3])  # the kernel writes what still fits, then refuses
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    started = time.monotonic()
    output.write(b"2nd")
    waiting = asyncio.create_task(output.write_durably(b"3rd"))
    assert time.monotonic() - started < 0.1
    await until(lambda: events)
    await asyncio.sleep(0.2)
    assert [level for level, _, _ in events] == ["error"]
    assert "No space left" in events[0][2]
    assert path.read_bytes() == b"first\n"
    assert not waiting.done()
    full = False
    await asyncio.wait_for(waiting, 5)
    assert path.read_bytes() == b"first\n2nd\n3rd\n"
    await until(lambda: len(events) == 2)
    assert (events[1][0], events[1][1]) == ("ok", events[0][1])
    await output.close()


async def test_memory_is_bounded_and_the_loss_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RETRY_S", 0.05)
    monkeypatch.setattr(lines, "MAX_PENDING_BYTES", 1000)
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"a file where the directory should be")
    events = Events()
    output = LineFile(blocked / "out.jsonl", events)
    durable = asyncio.create_task(output.write_durably(b"wanted"))
    await until(lambda: events)
    for number in range(100):
        output.write(b"%03d" % number + b"x" * 96)
    blocked.unlink()
    await asyncio.wait_for(durable, 5)
    await until(lambda: len(events) == 3)
    written = (blocked / "out.jsonl").read_bytes().splitlines()
    assert b"wanted" in written
    assert written[-1].startswith(b"099")
    assert len(written) <= 12
    assert [(level, code.partition(":")[0]) for level, code, _ in events[1:]] == [
        ("ok", "output-stuck"),
        ("error", "output-lost"),
    ]
    assert "given up" in events[2][2]
    await output.close()


async def test_closing_on_a_dead_disk_ends_and_tells_waiters(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    events = Events()
    output = LineFile(blocked / "out.jsonl", events)
    durable = asyncio.create_task(output.write_durably(b"wanted"))
    output.write(b"not waited for")
    await until(lambda: events)
    await asyncio.wait_for(output.close(), 5)
    with pytest.raises(OutputError):
        await durable
    assert events[-1][1].startswith("output-lost")
    assert events[-1][2].startswith("1 decisions")


def test_tail_reads_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert tail_lines(path) == []
    path.write_bytes(b"aaaa\nbbbb\ncccc\ntorn")
    assert tail_lines(path) == [b"aaaa", b"bbbb", b"cccc"]
    assert tail_lines(path, 12) == [b"cccc"]


async def test_a_line_torn_by_another_process_is_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = LineFile(path, Events())
    await output.write_durably(b'{"first":1}')
    with path.open("ab") as other:  # killed in the middle of its batch
        other.write(b'{"theirs":1}\n{"torn":')
    await output.write_durably(b'{"next":1}')
    await output.close()
    assert path.read_bytes() == b'{"first":1}\n{"theirs":1}\n{"next":1}\n'
