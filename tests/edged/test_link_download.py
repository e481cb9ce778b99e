"""One file of cloudd: cut, changed, damaged, lied about, too slow, onto a full disk; whole and right, or not there."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from edged.link import download as module
from edged.link.backoff import Backoff
from edged.link.download import check_room, download
from edged.link.errors import Refused, Unreachable, WrongContent
from edgekit.messages import FileEntry

REPOSITORY = Path(__file__).parents[2]
DATA = bytes(i * 7 % 251 for i in range(300_000))


class Server:
    """Serves one file in ranges, as well as it is told to."""

    def __init__(self) -> None:
        self.data = DATA
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.asked: list[str] = []
        self.ranges = True  # or it sends the whole whatever is asked for
        self.shift = 0  # by which the parts that it sends are wrong
        self.drip_s = 0.0  # between two single bytes
        self.status = 200
        self.url = ""
        self._runner = web.AppRunner(web.Application())

    async def start(self) -> None:
        self._runner.app.router.add_get("/file", self._file)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _file(self, request: web.Request) -> web.StreamResponse:
        wanted = request.headers.get("Range", "")
        self.asked.append(wanted)
        if self.status != 200:
            return web.json_response({"error": "not now"}, status=self.status)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start:
            assert request.headers["If-Range"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
            start += self.shift
        body = self.data[start:]
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        response.content_length = len(body)
        await response.prepare(request)
        if self.drip_s:
            for one in range(len(body)):
                await response.write(body[one : one + 1])
                await asyncio.sleep(self.drip_s)
        cut = self.cuts.pop(0) if self.cuts else len(body)
        await response.write(body[:cut])
        if cut < len(body) and request.transport is not None:
            await asyncio.sleep(0.02)
            request.transport.close()
        return response


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


def entry(data: bytes = DATA) -> FileEntry:
    return FileEntry(path="model.onnx", sha256=hashlib.sha256(data).hexdigest(), size=len(data))


async def get(server: Server, target: Path, patience_s: float = 0.3, wanted: FileEntry | None = None) -> list[int]:
    """Fetch; how many bytes were there after each piece."""
    seen: list[int] = []
    async with aiohttp.ClientSession() as session:
        backoff = Backoff(0.01, 0.05)
        wanted = wanted or entry()
        await download(
            session, server.url, "/file", wanted, target, patience_s=patience_s, backoff=backoff, came=seen.append
        )
    return seen


def part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


@pytest.mark.parametrize("durable", [True, False])
async def test_a_file_comes_whole_and_leaves_nothing_beside_it(server: Server, tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "new" / "file"
    async with aiohttp.ClientSession() as session:
        await download(session, server.url, "/file", entry(), target, patience_s=1, durable=durable)
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]


async def test_an_empty_file_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    await get(server, tmp_path / "file", wanted=entry(b""))
    assert (tmp_path / "file").read_bytes() == b""
    assert server.asked == []


async def test_a_connection_that_breaks_again_and_again_is_continued_where_it_broke(
    server: Server, tmp_path: Path
) -> None:
    server.cuts = [100_000, 1, 50_000, 0, 1000]
    seen = await get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert seen == sorted(seen) and seen[-1] == len(DATA)
    assert server.asked[:3] == ["", "bytes=100000-", "bytes=100001-"]
    assert len(server.asked) == 6


async def test_without_patience_it_goes_on_as_long_as_something_comes(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 1000, 0]
    with pytest.raises(Unreachable):
        await get(server, tmp_path / "file", patience_s=0)
    assert part(tmp_path / "file").read_bytes() == DATA[:2000]
    await get(server, tmp_path / "file", patience_s=0)
    assert server.asked == ["", "bytes=1000-", "bytes=2000-", "bytes=2000-"]
    assert (tmp_path / "file").read_bytes() == DATA


async def test_a_server_that_has_no_ranges_sends_it_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [200_000, 100_000]
    await get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize("left", [b"\0" * 1000, b"\0" * len(DATA), b"\0" * (len(DATA) + 1)])
async def test_a_part_that_was_damaged_on_the_disk_is_fetched_anew(server: Server, tmp_path: Path, left: bytes) -> None:
    part(tmp_path / "file").write_bytes(left)
    await get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.asked[-1] == ""


async def test_another_part_than_was_asked_for_is_not_taken(server: Server, tmp_path: Path) -> None:
    part(tmp_path / "file").write_bytes(DATA[:1000])
    server.shift = 1
    await get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.asked == ["bytes=1000-", ""]


@pytest.mark.parametrize(
    ("data", "words"),
    [(DATA[:-1] + b"?", "announced SHA-256"), (DATA + b"?", "longer than the announced 300000 bytes")],
)
@pytest.mark.parametrize("before", [0, 1000])
async def test_wrong_bytes_are_named_and_nothing_of_them_stays(
    server: Server, tmp_path: Path, data: bytes, words: str, before: int
) -> None:
    server.data = data
    if before:
        part(tmp_path / "file").write_bytes(DATA[:before])
    with pytest.raises(WrongContent, match=f"model.onnx.*{words}"):
        await get(server, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1 + bool(before), "anew once, not for ever"


async def test_a_file_that_is_shorter_than_announced_is_given_up(server: Server, tmp_path: Path) -> None:
    server.data = DATA[:-1]
    with pytest.raises(Unreachable, match="1 bytes before the end"):
        await get(server, tmp_path / "file", patience_s=0)


@pytest.mark.parametrize(("status", "kind"), [(404, Refused), (403, Refused), (503, Unreachable)])
async def test_a_considered_no_is_not_asked_again_and_a_busy_server_is(
    server: Server, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    server.status = status
    with pytest.raises(kind, match="not now"):
        await get(server, tmp_path / "file", patience_s=0.1)
    assert (len(server.asked) == 1) == (kind is Refused)


async def test_what_drips_in_is_given_up_after_a_bounded_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.5)
    monkeypatch.setattr(module, "SLOWEST", 1 << 20)
    server.drip_s = 0.01
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"too slowly from http.*of 300000 bytes in"):
        await get(server, tmp_path / "file")
    assert time.monotonic() - started < 10
    assert 0 < part(tmp_path / "file").stat().st_size < 2000, "what came stays for another time"


async def test_a_link_in_the_place_of_the_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine")
    part(tmp_path / "file").symlink_to(tmp_path / "other")
    with pytest.raises(OSError) as caught:
        await get(server, tmp_path / "file")
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "other").read_bytes() == b"mine"


def test_room_is_counted_without_the_reserve(tmp_path: Path) -> None:
    there = os.statvfs(tmp_path)
    check_room(tmp_path, 1)
    with pytest.raises(OSError, match="bytes more are needed, but only") as caught:
        check_room(tmp_path, there.f_bavail * there.f_frsize)
    assert caught.value.errno == errno.ENOSPC


FULL = """
import asyncio, errno, sys
from pathlib import Path
import aiohttp
from edged.link.download import download
from edgekit.messages import FileEntry

async def main():
    entry = FileEntry(path="model.onnx", sha256=sys.argv[2], size=int(sys.argv[3]))
    async with aiohttp.ClientSession() as session:
        try:
            await download(session, sys.argv[1], "/file", entry, Path(sys.argv[4]) / "file", patience_s=60)
        except OSError as error:
            print(errno.errorcode[error.errno], list(Path(sys.argv[4]).iterdir()))

asyncio.run(main())
"""


async def test_a_full_disk_is_a_full_disk_at_once_and_gets_its_room_back(server: Server, tmp_path: Path) -> None:
    """On a real file system of 64 KiB, in a namespace of its own."""
    script = 'mount -t tmpfs -o size=64k none "$1" && shift && exec "$@"'
    begin = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    arguments = [server.url, entry().sha256, str(len(DATA)), str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *begin,
        *(sys.executable, "-c", FULL, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert out.decode().split() == ["ENOSPC", "[]"]
