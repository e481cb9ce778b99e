"""The one way to the machine's /proc, /sys and /dev: the real ones, or a recorded tree of them.

Everything that looks at hardware reads through `Host`, so that a recorded board is as good a test as a real one. No
method raises: what cannot be read is `Missing` with its errno, an empty list or None.

Format of a recorded tree (`.tree`): UTF-8, one entry a line, separated by tabs: kind, path, JSON string, optionally a
source. `#` lines are comments. Kinds: `f` a file with its content (one character a byte, latin-1), `l` a symbolic link
with its target, `c` a character device as "mode owner:group major:minor [openable|closed]" (`-` for an unknown number),
`e` a path whose reading fails with the errno of that name. A line that cannot be understood is skipped.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import grp
import itertools
import json
import os
import pwd
import queue
import re
import stat
import threading
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import msgspec

READ_LIMIT = 65_536
"""Bytes read from one file unless the caller asks for another limit."""
GLOB_LIMIT = 4096
"""Paths that one pattern may give."""
TREE_LIMIT = 8 * 1024 * 1024
"""Characters of a recorded tree; the rest is ignored."""
READ_TIMEOUT_S = 1.0
"""How long one file may take. Sensors behind a slow bus block in the kernel, a dead one for ever."""
STUCK_LIMIT = 8
"""Readers that may hang at a time; when so many do, nothing is read any more."""
_LINK_HOPS = 16
_ERRNOS = {name: value for name, value in vars(errno).items() if name.startswith("E") and isinstance(value, int)}
_NUMBER = re.compile(r"(\d+)")


class Missing(msgspec.Struct, frozen=True):
    """Why there is no content: the errno of the attempt (EAGAIN: a power-gated sensor, ETIMEDOUT: it hangs)."""

    errno: int


class Node(msgspec.Struct, frozen=True):
    """A device node.

    `mode` are the permission bits, `rdev` is (major, minor) or None where unknown; `uid` and `gid` are -1 where only
    the names `owner` and `group` are known. `openable`: this user may open it for reading and writing.
    """

    mode: int
    uid: int
    gid: int
    rdev: tuple[int, int] | None
    openable: bool
    owner: str = ""
    group: str = ""


class Host(Protocol):
    """A machine to look at. Paths are absolute and belong to that machine."""

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | Missing:
        """The first `limit` bytes of the file."""
        ...

    def glob(self, pattern: str) -> list[str]:
        """Paths that match a shell pattern (`*`, `?`, `[...]` within a component), numbers in natural order.

        A pattern without a wildcard asks whether the path exists.
        """
        ...

    def link(self, path: str) -> str | None:
        """The target of a symbolic link, as written in it."""
        ...

    def node(self, path: str) -> Node | None:
        """The device node at this path, links followed; None for everything that is not one."""
        ...


class RealHost:
    """The machine itself, or a copy of its files below `root`."""

    def __init__(self, root: str = "/", timeout_s: float = READ_TIMEOUT_S) -> None:
        self._root = root.rstrip("/")
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._reader: _Reader | None = None
        self._stuck: dict[str, _Reader] = {}

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | Missing:
        """See `Host.read`. A file that takes longer than the time limit is Missing(ETIMEDOUT)."""
        with self._lock:
            self._stuck = {name: reader for name, reader in self._stuck.items() if reader.busy()}
            if path in self._stuck or len(self._stuck) >= STUCK_LIMIT:
                return Missing(errno.ETIMEDOUT)
            if self._reader is None:
                self._reader = _Reader()
                weakref.finalize(self, self._reader.stop)
            content = self._reader.read(self._root + path, limit, self._timeout_s)
            if content is None:
                self._stuck[path] = self._reader
                self._reader = None
                return Missing(errno.ETIMEDOUT)
            return content

    def glob(self, pattern: str) -> list[str]:
        """See `Host.glob`."""
        try:
            every = glob.iglob(glob.escape(self._root) + pattern)  # noqa: PTH207 - Path.glob knows no character classes
            found = itertools.islice(every, GLOB_LIMIT)
            return sorted((path[len(self._root) :] for path in found), key=natural)
        except (OSError, ValueError, re.error):
            return []

    def link(self, path: str) -> str | None:
        """See `Host.link`."""
        try:
            return str(Path(self._root + path).readlink())
        except (OSError, ValueError):
            return None

    def node(self, path: str) -> Node | None:
        """See `Host.node`. The node is not opened: opening alone may power a device on or take it from its owner."""
        full = self._root + path
        try:
            status = Path(full).stat()
            if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                return None
            openable = os.access(full, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        except (OSError, ValueError):
            return None
        owner = group = ""
        with contextlib.suppress(KeyError):
            owner = pwd.getpwuid(status.st_uid).pw_name
        with contextlib.suppress(KeyError):
            group = grp.getgrgid(status.st_gid).gr_name
        rdev = (os.major(status.st_rdev), os.minor(status.st_rdev))
        mode = stat.S_IMODE(status.st_mode)
        return Node(mode, status.st_uid, status.st_gid, rdev, openable, owner, group)


class TreeHost:
    """A machine recorded as text.

    Args:
        text: the tree, see the module's docstring.
        groups: groups whose member the looking user is; decides `Node.openable` where the recording does not say it.
    """

    def __init__(self, text: str, groups: Collection[str] = ()) -> None:
        self._groups = frozenset(groups)
        self._top: _Directory = {}
        for line in text[:TREE_LIMIT].splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                self._add(line)

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | Missing:
        """See `Host.read`."""
        entry = self._find(path)
        if entry is None:
            return Missing(errno.ENOENT)
        if isinstance(entry, dict):
            return Missing(errno.EISDIR)
        if entry.kind == "e":
            return Missing(_ERRNOS.get(entry.value, errno.EIO))
        if entry.kind == "f":
            return entry.value[:limit].encode("latin-1", "replace")
        return Missing(errno.EINVAL)

    def glob(self, pattern: str) -> list[str]:
        """See `Host.glob`."""
        found = [""]
        for part in _parts(pattern):
            found = [f"{path}/{name}" for path in found for name in self._matching(path or "/", part)][:GLOB_LIMIT]
        return sorted(filter(None, found), key=natural)

    def link(self, path: str) -> str | None:
        """See `Host.link`."""
        entry = self._find(path, follow_last=False)
        return entry.value if isinstance(entry, _Entry) and entry.kind == "l" else None

    def node(self, path: str) -> Node | None:
        """See `Host.node`."""
        entry = self._find(path)
        if not isinstance(entry, _Entry) or entry.kind != "c":
            return None
        try:
            return _node(entry.value, self._groups)
        except ValueError:
            return None

    def _matching(self, directory: str, pattern: str) -> list[str]:
        entries = self._find(directory)
        if not isinstance(entries, dict):
            return []
        if not glob.has_magic(pattern):
            return [pattern] if pattern in entries else []
        return [name for name in fnmatch.filter(entries, pattern) if not name.startswith(".")]

    def _add(self, line: str) -> None:
        kind, path, value, *_ = line.split("\t")
        content = json.loads(value)
        parts = _parts(path)
        if kind not in ("f", "l", "c", "e") or not isinstance(content, str) or not parts:
            raise ValueError(line)
        here = self._top
        for part in parts[:-1]:
            inner = here.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(line)
            here = inner
        if not isinstance(here.get(parts[-1]), dict):
            here[parts[-1]] = _Entry(kind, content)

    def _find(self, path: str, follow_last: bool = True) -> _Directory | _Entry | None:
        rest = list(reversed(_parts(path)))
        trail: list[_Directory] = [self._top]
        hops = 0
        while rest:
            part = rest.pop()
            if part == "..":
                trail = trail[:-1] or [self._top]
                continue
            entry = trail[-1].get(part)
            if isinstance(entry, dict):
                trail.append(entry)
            elif entry is not None and entry.kind == "l" and (rest or follow_last):
                hops += 1
                if hops > _LINK_HOPS:
                    return None
                trail = [self._top] if entry.value.startswith("/") else trail
                rest.extend(reversed(_parts(entry.value)))
            else:
                return None if rest else entry
        return trail[-1]


def natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts zone10 after zone9."""
    return [(int(part[:18]), part) if part.isdecimal() else (-1, part) for part in _NUMBER.split(path)]


class _Entry(msgspec.Struct, frozen=True):
    kind: str
    value: str


_Directory = dict[str, "_Directory | _Entry"]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _node(text: str, groups: frozenset[str]) -> Node:
    mode_text, names, number, *rest = text.split()
    owner, _, group = names.partition(":")
    mode = int(mode_text, 8) & 0o7777
    group = "" if group == "-" else group
    major, _, minor = number.partition(":")
    rdev = None if number == "-" else (int(major), int(minor))
    needed = 0o6 if group not in groups else 0o60
    openable = rest[0] == "openable" if rest else mode & needed == needed
    return Node(mode, 0 if owner == "root" else -1, 0 if group == "root" else -1, rdev, openable, owner, group)


class _Reader:
    """A thread that reads one file at a time, so that a file that hangs does not hang the caller."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[bytes | Missing] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="host-reader", daemon=True)
        self._thread.start()

    def read(self, path: str, limit: int, timeout_s: float) -> bytes | Missing | None:
        """The content, or None when the time is over; the reader is of no use then, and ends when the file lets go."""
        self._asked.put((path, limit))
        try:
            return self._answered.get(timeout=timeout_s)
        except queue.Empty:
            self.stop()
            return None

    def stop(self) -> None:
        """End after the file at hand."""
        self._asked.put(None)

    def busy(self) -> bool:
        """Whether it is still there."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._asked.get()) is not None:
            self._answered.put(_read_file(*job))


def _read_file(path: str, limit: int) -> bytes | Missing:
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            return Missing(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)
        # os.read: the buffered files of Python turn EAGAIN of a gated sensor into None or a TypeError.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            content = b""
            while len(content) < limit and (piece := os.read(descriptor, limit - len(content))):
                content += piece
            return content
        finally:
            os.close(descriptor)
    except OSError as error:
        return Missing(error.errno or errno.EIO)
    except ValueError:
        return Missing(errno.EINVAL)
