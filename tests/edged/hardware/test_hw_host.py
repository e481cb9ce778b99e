"""Reading a machine: the real files and the recorded tree answer alike, and nothing raises or hangs."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from edged.hardware import host as host_module
from edged.hardware.facts import gather
from edged.hardware.host import READ_LIMIT, STUCK_LIMIT, Missing, Node, RealHost, TreeHost

TREE = """\
# a comment
f	/sys/a/zone2/type	"two\\n"	a source
f	/sys/a/zone10/type	"ten\\n"
f	/sys/real/deep/name	"\\u00ff\\u0000end"
l	/proc/short	"/sys/real"
l	/proc/relative	"../sys/real/deep"
l	/loop/a	"/loop/b"
l	/loop/b	"/loop/a"
e	/sys/a/gated	"EAGAIN"
c	/dev/x0	"0660 root:render 261:0"
c	/dev/x1	"0666 root:root -"
c	/dev/x2	"0660 user:other 1:2 openable"
c	/dev/x3	"0666 root:root 1:3 closed"
c	/dev/bad	"what"
"""


def unpack(text: str, root: Path) -> None:
    """The files and links of a tree as real ones."""
    for line in text.splitlines():
        if line[:1] in ("f", "l"):
            kind, path, value, *_ = line.split("\t")
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            content = json.loads(value)
            if kind == "f":
                target.write_bytes(content.encode("latin-1"))
            elif content.startswith("/"):
                target.symlink_to(f"{root}{content}")
            else:
                target.symlink_to(content)


def test_a_tree_and_the_same_files_answer_alike(tmp_path: Path) -> None:
    unpack(TREE, tmp_path)
    for host in (TreeHost(TREE), RealHost(str(tmp_path))):
        assert host.read("/sys/a/zone2/type") == b"two\n"
        assert host.read("/sys/real/deep/name") == b"\xff\0end"
        assert host.read("/proc/short/deep/name", 2) == b"\xff\0"
        assert host.read("/proc/relative/name") == b"\xff\0end"
        assert host.read("/proc/relative/../deep/./name") == b"\xff\0end"
        assert host.read("/sys/none") == Missing(errno.ENOENT)
        assert host.read("/sys/a") == Missing(errno.EISDIR)
        assert isinstance(host.read("/loop/a"), Missing)
        assert host.glob("/sys/a/zone*/type") == ["/sys/a/zone2/type", "/sys/a/zone10/type"]
        assert host.glob("/proc/short/*/n?me") == ["/proc/short/deep/name"]
        assert host.glob("/proc/sh[a-z]rt") == ["/proc/short"]
        assert host.glob("/sys/real/deep") == ["/sys/real/deep"]
        assert host.glob("/sys/none/*") == host.glob("/sys/none") == []
        assert host.link("/proc/relative") == "../sys/real/deep"
        assert host.link("/sys/a") is host.link("/none") is None
        assert host.node("/sys/a/zone2/type") is host.node("/none") is None


def test_device_nodes_of_a_tree() -> None:
    host = TreeHost(TREE)
    assert host.node("/dev/x0") == Node(0o660, 0, -1, (261, 0), False, "root", "render")
    assert host.node("/dev/x1") == Node(0o666, 0, 0, None, True, "root", "root")
    assert host.node("/dev/x2") == Node(0o660, -1, -1, (1, 2), True, "user", "other")
    assert host.node("/dev/x3") == Node(0o666, 0, 0, (1, 3), False, "root", "root")
    assert host.node("/dev/bad") is None
    assert host.read("/dev/x0") == Missing(errno.EINVAL)
    assert TreeHost(TREE, groups=["render"]).node("/dev/x0") == Node(0o660, 0, -1, (261, 0), True, "root", "render")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "f",
        "f\t/a",
        "f\t/a\tno json",
        "f\t/a\t5",
        'z\t/a\t"x"',
        'f\t\t"x"',
        'f\t/\t"x"',
        "f\t/a\t" + "[" * 100_000,
    ],
)
def test_a_line_that_is_none_is_skipped(line: str) -> None:
    host = TreeHost(f'{line}\nf\t/b\t"y"')
    assert host.read("/b") == b"y"
    assert isinstance(host.read("/a"), Missing)


def test_an_entry_under_a_file_is_skipped_and_an_unknown_errno_is_an_error() -> None:
    host = TreeHost('f\t/a\t"x"\nf\t/a/b\t"y"\ne\t/c\t"errorcode"\ne\t/d\t"EAGAIN"')
    assert host.read("/a") == b"x"
    assert host.read("/c") == Missing(errno.EIO)
    assert host.read("/d") == Missing(errno.EAGAIN)


def test_a_real_device_node_is_looked_at_not_opened() -> None:
    host = RealHost()
    node = host.node("/dev/null")
    assert node is not None
    assert (node.rdev, node.openable, node.owner) == ((1, 3), True, "root")
    assert host.read("/dev/zero") == Missing(errno.EINVAL), "only files are read"


def test_content_is_capped(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (READ_LIMIT + 10))
    host = RealHost(str(tmp_path))
    content = host.read("/big")
    assert isinstance(content, bytes) and len(content) == READ_LIMIT
    assert host.read("/big", READ_LIMIT + 5) == b"x" * (READ_LIMIT + 5)


def test_odd_paths_are_missing(tmp_path: Path) -> None:
    host = RealHost(str(tmp_path))
    for path in ("/a\0b", "/" + "a" * 5000, "/\udcff"):
        assert isinstance(host.read(path), Missing)
        assert host.glob(path) == []
        assert host.link(path) is host.node(path) is None


def test_a_file_that_hangs_does_not_hang_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", *map(str, range(STUCK_LIMIT + 1))):
        (tmp_path / name).write_bytes(b"x")
    release = threading.Event()
    read = os.read

    def slow_read(descriptor: int, length: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name != "good":
            release.wait(20)
        return read(descriptor, length)

    monkeypatch.setattr(host_module.os, "read", slow_read)
    host = RealHost(str(tmp_path), timeout_s=0.05)
    try:
        assert host.read("/0") == Missing(errno.ETIMEDOUT)
        threads = threading.active_count()
        assert host.read("/0") == Missing(errno.ETIMEDOUT)
        assert threading.active_count() == threads, "known to hang: not tried again"
        assert host.read("/good") == b"x", "other files are read all the same"
        for number in range(1, STUCK_LIMIT):
            assert host.read(f"/{number}") == Missing(errno.ETIMEDOUT)
        threads = threading.active_count()
        assert host.read("/good") == Missing(errno.ETIMEDOUT), "too many hang: give up"
        assert threading.active_count() == threads
    finally:
        release.set()
    deadline = time.monotonic() + 5
    while host.read("/0") != b"x":
        assert time.monotonic() < deadline, "what hung is read again once it answers"
        time.sleep(0.01)


def test_the_reader_ends_with_its_host(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    host = RealHost(str(tmp_path))
    host.read("/none")
    (reader,) = set(threading.enumerate()) - before
    del host
    reader.join(5)
    assert not reader.is_alive()


def test_this_machine_has_facts() -> None:
    facts = gather(RealHost())
    assert facts.architecture == os.uname().machine
    assert facts.kernel == os.uname().release
    assert set(facts.cpu.allowed) <= os.sched_getaffinity(0)
    assert facts.memory_total > 0
    assert facts.cpu.flags
