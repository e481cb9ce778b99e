"""The folder source: nothing lost, nothing decided twice, bad pictures put aside, crashes at every named point."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.capture import files
from edged.capture.folder import FolderSource, NotNow, Refused
from edged.capture.kept import Kept
from edged.capture.outputs import FileOutput, jsonl_output
from edged.collab.spool_files import Ballast
from edgekit.atomic import write_file
from edgekit.messages import Decision, Level, Verdict
from edgekit.services import Source
from tests.support.disk import MIB, fill


def decide(picture: bytes, sample_id: str, serial: str, captured_at: float) -> Decision:
    edge = Verdict(label=picture.decode(errors="replace")[:20], score=1.0, margin=1.0, model="m@1")
    return Decision(
        sample_id=sample_id,
        service="s",
        label=edge.label,
        score=1.0,
        decided="edge",
        model="m@1",
        edge=edge,
        serial=serial,
        captured_at=captured_at,
    )


class Bench:
    """A folder, its outputs, and a source that decides by reading the file as text ("bad" is refused)."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.folder = root / "in"
        self.folder.mkdir(exist_ok=True)
        options = {"settle_ms": 60.0} | options
        self.source = Source(kind="folder", path=str(self.folder), **options)
        self.paths = [root / "out.jsonl", root / "second.jsonl"]
        self.kept = root / "kept.db"
        self.make_room: Callable[[], bool] = lambda: False
        self.asked: list[str] = []
        self.events: list[tuple[Level, str, str]] = []
        self.busy = 0
        self.outputs: dict[str, FileOutput] = {}

    async def inspect(self, picture: bytes, *, sample_id: str, captured_at: float, serial: str) -> Decision:
        if self.busy:
            self.busy -= 1
            raise NotNow("busy")
        self.asked.append(serial)
        if picture.startswith(b"bad"):
            raise Refused("not a JPEG or PNG picture")
        return decide(picture, sample_id, serial, captured_at)

    async def record(self, decision: Decision, outputs: Collection[str]) -> None:
        line = msgspec.json.encode(decision)
        await asyncio.gather(*(self.outputs[key].write_durably(decision, line) for key in outputs))

    def notify(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self.events.append((level, code, text))

    def start(self) -> tuple[FolderSource, asyncio.Task[None]]:
        self.outputs = {str(path): jsonl_output(path, self.notify) for path in self.paths}
        folder = FolderSource(
            "s",
            self.source,
            list(self.outputs.values()),
            self.inspect,
            self.record,
            self.notify,
            self.kept,
            self.make_room,
        )
        return folder, asyncio.create_task(folder.run())

    async def while_running(self, condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
        """Run the source until the condition holds, then stop it cleanly."""
        folder, task = self.start()
        try:
            deadline = time.monotonic() + timeout_s
            while not condition():
                assert time.monotonic() < deadline, f"it did not happen: {self.events} {sorted(self.folder.iterdir())}"
                await asyncio.sleep(0.02)
        finally:
            folder.stop()
            await asyncio.wait_for(task, 5)
            for output in self.outputs.values():
                await output.close()

    def lines(self, number: int = 0) -> list[dict[str, Any]]:
        path = self.paths[number]
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def put(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


async def test_files_are_decided_recorded_and_moved(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(12):
        bench.put(f"board-{number:02}.jpg", f"picture {number}")
    await bench.while_running(lambda: len(list(bench.folder.glob("done/*"))) == 12)
    assert [line["serial"] for line in sorted(bench.lines(), key=lambda line: line["serial"])] == [
        f"board-{number:02}" for number in range(12)
    ]
    assert bench.lines(0) == bench.lines(1) or len(bench.lines(1)) == 12
    assert not list(bench.folder.glob("*.jpg"))
    assert (bench.folder / "done" / "board-03.jpg").read_text() == "picture 3"
    assert bench.lines()[0]["captured_at"] == pytest.approx(time.time(), abs=30)


async def test_bad_pictures_go_to_refused_with_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.put("a.jpg", "bad bytes")
    bench.put("b.jpg", "good")
    await bench.while_running(
        lambda: (bench.folder / "done/b.jpg").exists() and (bench.folder / "refused/a.jpg").exists()
    )
    assert "not a JPEG" in (bench.folder / "refused/a.jpg.txt").read_text()
    assert [line["serial"] for line in bench.lines()] == ["b"]
    assert any(code == "picture-refused:s" for _, code, _ in bench.events)


async def test_a_growing_file_waits_until_it_is_complete(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settle_ms=250.0)
    path = bench.put("slow.jpg", "part one")

    async def grow() -> None:
        for number in range(6):
            await asyncio.sleep(0.1)
            with path.open("a") as handle:
                handle.write(f" part {number}")

    growing = asyncio.create_task(grow())
    await bench.while_running(lambda: (bench.folder / "done/slow.jpg").exists())
    await growing
    assert bench.lines()[0]["label"] == "part one part 0 part"
    assert (bench.folder / "done/slow.jpg").read_text().endswith("part 5")
    assert bench.asked == ["slow"]


async def test_what_is_no_candidate_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pattern="*.jpg")
    secret = tmp_path / "secret.jpg"
    secret.write_text("secret")
    (bench.folder / "link.jpg").symlink_to(secret)
    os.mkfifo(bench.folder / "pipe.jpg")
    (bench.folder / "folder.jpg").mkdir()
    for name in (".hidden.jpg", "notes.txt", "upload.jpg.part"):
        bench.put(name, "x")
    bench.put("real.jpg", "real")
    before = {entry.name for entry in bench.folder.iterdir()} - {"real.jpg"}
    await bench.while_running(lambda: (bench.folder / "done/real.jpg").exists())
    await asyncio.sleep(0)
    assert {entry.name for entry in bench.folder.iterdir()} == before | {"done"}
    assert bench.asked == ["real"]
    assert secret.read_text() == "secret"


async def test_own_output_in_the_folder_is_not_a_picture(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.paths = [bench.folder / "decisions.jsonl"]
    bench.put("a.jpg", "one")
    await bench.while_running(lambda: (bench.folder / "done/a.jpg").exists())
    bench.put("b.jpg", "two")
    await bench.while_running(lambda: (bench.folder / "done/b.jpg").exists())
    assert [line["serial"] for line in bench.lines()] == ["a", "b"]


async def test_names_that_are_taken_and_names_that_are_no_text(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.folder / "done").mkdir()
    (bench.folder / "done/a.jpg").write_text("earlier")
    bench.put("a.jpg", "later")
    with open(os.fsencode(bench.folder) + b"/\xff\xfe\n.jpg", "w") as handle:  # noqa: PTH123
        handle.write("odd")
    bench.put("x" * 240 + ".jpg", "long")
    await bench.while_running(lambda: len(list((bench.folder / "done").iterdir())) == 4)
    assert (bench.folder / "done/a.jpg").read_text() == "earlier"
    assert {line["label"] for line in bench.lines()} == {"later", "odd", "long"}


async def test_after_delete_removes_and_keep_remembers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, after="delete")
    gone = bench.put("a.jpg", "one")
    await bench.while_running(lambda: not gone.exists())
    assert len(bench.lines()) == 1

    (tmp_path / "keep").mkdir()
    keeper = Bench(tmp_path / "keep", after="keep")
    stays = keeper.put("b.jpg", "one")
    keeper.put("bad.jpg", "bad")
    await keeper.while_running(lambda: keeper.asked.count("b") == 1 and keeper.asked.count("bad") == 1)
    keeper.put("c.jpg", "two")
    await keeper.while_running(lambda: "c" in keeper.asked and len(keeper.lines()) == 2)
    stays.write_text("a new picture under the old name")
    await keeper.while_running(lambda: len(keeper.lines()) == 3)
    assert sorted(keeper.asked) == ["b", "b", "bad", "c"]
    assert {entry.name for entry in keeper.folder.iterdir()} == {"b.jpg", "bad.jpg", "c.jpg"}


async def test_overload_is_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.busy = 1
    bench.put("a.jpg", "one")
    await bench.while_running(lambda: (bench.folder / "done/a.jpg").exists())
    assert len(bench.lines()) == 1


async def test_a_missing_folder_is_reported_once_and_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.folder.rmdir()
    folder, task = bench.start()
    await asyncio.sleep(0.3)
    assert [(level, code) for level, code, _ in bench.events] == [("warning", "folder:s")]
    bench.folder.mkdir()
    bench.put("a.jpg", "one")
    deadline = time.monotonic() + 5
    while not (bench.folder / "done/a.jpg").exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    # The folder is replaced under our feet: the new one is watched.
    bench.folder.rename(tmp_path / "away")
    bench.folder.mkdir()
    bench.put("b.jpg", "two")
    deadline = time.monotonic() + 5
    while not (bench.folder / "done/b.jpg").exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    folder.stop()
    await asyncio.wait_for(task, 5)
    assert (bench.folder / "done/b.jpg").exists()
    assert bench.events[-1][0] == "ok"
    for output in bench.outputs.values():
        await output.close()


async def test_two_workers_do_not_share_a_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    folder, task = bench.start()
    await asyncio.sleep(0.2)
    second = Bench(tmp_path)
    other, other_task = second.start()
    for number in range(6):
        bench.put(f"{number}.jpg", "x")
    await asyncio.sleep(0.8)
    assert second.asked == []
    folder.stop()
    await asyncio.wait_for(task, 5)
    bench.put("late.jpg", "x")
    deadline = time.monotonic() + 5
    while not (bench.folder / "done/late.jpg").exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    other.stop()
    await asyncio.wait_for(other_task, 5)
    assert sorted(bench.asked) == [str(number) for number in range(6)]
    assert second.asked == ["late"]
    for output in [*bench.outputs.values(), *second.outputs.values()]:
        await output.close()


async def test_a_file_that_cannot_be_moved_is_not_decided_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    in_the_way = bench.put("done", "a file where the folder should be")
    (tmp_path / "elsewhere").mkdir()
    bench.put("a.jpg", "one")
    folder, task = bench.start()
    await asyncio.sleep(2.5)
    assert any(code == "folder-file:s" for _, code, _ in bench.events)
    bench.put("b.jpg", "two")  # one more of them
    await asyncio.sleep(0.5)
    assert ("ok", "folder-file:s") not in [(level, code) for level, code, _ in bench.events]
    in_the_way.unlink(missing_ok=True)
    in_the_way.symlink_to(tmp_path / "elsewhere")  # a link would lead out of the folder: not followed
    await asyncio.sleep(1.5)
    assert not list((tmp_path / "elsewhere").iterdir())
    in_the_way.unlink()
    deadline = time.monotonic() + 5
    while len(list(bench.folder.glob("done/*.jpg"))) < 2 and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    folder.stop()
    await asyncio.wait_for(task, 5)
    assert (bench.folder / "done/a.jpg").exists()
    assert [line["serial"] for line in bench.lines()].count("a") == 1
    assert [level for level, code, _ in bench.events if code == "folder-file:s"][-1] == "ok"
    for output in bench.outputs.values():
        await output.close()


async def test_a_file_that_made_trouble_and_is_taken_away_is_trouble_no_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.put("done", "a file where the folder should be").chmod(0o600)
    stuck = bench.put("a.jpg", "one")
    folder, task = bench.start()

    def last() -> str:
        return next((level for level, code, _ in reversed(bench.events) if code == "folder-file:s"), "")

    async def until(level: str) -> None:
        async with asyncio.timeout(6):
            while last() != level:
                await asyncio.sleep(0.02)

    await until("warning")
    stuck.unlink()
    (bench.folder / "done").unlink()
    await until("ok")
    folder.stop()
    await asyncio.wait_for(task, 5)
    for output in bench.outputs.values():
        await output.close()


_CRASHING = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_capture_folder import Bench
bench = Bench(Path({root!r}), after={after!r})
asyncio.run(bench.while_running(lambda: False, 10))
"""


@pytest.mark.parametrize("point", ["folder.decided", "folder.moved", "folder.decided:3"])
@pytest.mark.parametrize("after", ["move", "delete", "keep"])
async def test_a_crash_loses_nothing_and_repeats_nothing(tmp_path: Path, point: str, after: str) -> None:
    bench = Bench(tmp_path, after=after)
    for number in range(6):
        bench.put(f"{number}.jpg", f"picture {number}")
    code = _CRASHING.format(tests=str(Path(__file__).parent), root=str(tmp_path), after=after)
    crashed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=os.environ | {"EDGED_CRASH_AT": point, "PYTHONPATH": str(Path.cwd())}
    )
    assert await asyncio.wait_for(crashed.wait(), 20) == -9
    assert 1 <= len(bench.lines(0)) < 6 or point.endswith(":3")

    def finished() -> bool:
        left = len(list(bench.folder.glob("*.jpg")))
        return len(bench.lines()) >= 6 and (after == "keep" or left == 0)

    await bench.while_running(finished)
    await bench.while_running(lambda: True)
    for number in (0, 1):
        assert sorted(line["serial"] for line in bench.lines(number)) == [str(n) for n in range(6)]
    if after == "move":
        assert sorted(path.name for path in (bench.folder / "done").iterdir()) == [f"{n}.jpg" for n in range(6)]


async def test_a_decision_that_reached_one_output_is_copied_to_the_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = bench.put("a.jpg", "one")
    await bench.while_running(lambda: (bench.folder / "done/a.jpg").exists())
    (bench.folder / "done/a.jpg").rename(path)  # as if power had failed between the first output and the second
    bench.paths[1].unlink()
    await bench.while_running(lambda: (bench.folder / "done/a.jpg").exists())
    assert bench.lines(0) == bench.lines(1)
    assert bench.asked == ["a"]


async def test_a_line_that_is_no_text_in_an_output_does_not_stop_the_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.paths[0].write_bytes(b'{"sample_id":"\xff"}\n' + b"[" * 100_000 + b"\n")
    bench.put("a.jpg", "one")
    await bench.while_running(lambda: (bench.folder / "done/a.jpg").exists())


async def test_a_new_picture_under_the_name_of_a_refused_one_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.put("latest.jpg", "bad picture")

    def write_while_the_camera_writes(path: Path, data: bytes, mode: int) -> None:
        write_file(path, data, mode)
        if not bench.asked.count("latest") > 1:
            bench.put(".next", "a good picture").rename(bench.folder / "latest.jpg")

    monkeypatch.setattr(files, "write_file", write_while_the_camera_writes)
    await bench.while_running(lambda: (bench.folder / "done/latest.jpg").exists())
    assert [line["serial"] for line in bench.lines()] == ["latest"]
    assert list((bench.folder / "refused").iterdir()) == []


async def test_a_full_disk_does_not_keep_files_from_being_done(tmp_path: Path, small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast", 4 * MIB)
    assert ballast.make()
    (tmp_path / "place").mkdir()
    bench = Bench(tmp_path / "place", after="keep")
    bench.kept, bench.make_room = small_disk / "kept.db", ballast.release
    fill(small_disk)
    paths = [bench.put(f"{number}.jpg", f"picture {number}") for number in range(6)]
    await bench.while_running(lambda: len(bench.lines()) == 6)
    assert not ballast.present, "the disk was not full"
    assert [text for level, _, text in bench.events if level != "ok"] == []
    kept = Kept(bench.kept, "s", ballast.release)
    assert all(kept.has(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    kept.close()
