"""Record what the detection reads on a machine as a `.tree` that anybody may have: it names no specimen and no person.

Only what `gather`, `read_temperatures` and `throttled` ask for is recorded, so that the recording gives the same facts
as the machine. Slots of PCI and USB and names of batteries are numbered anew, of /proc/cpuinfo and /proc/meminfo only
the lines in use are kept, control groups (whose paths hold names of users and containers) become one group with their
limits.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable

from edged.hardware.devices import public_group
from edged.hardware.facts import Facts, gather
from edged.hardware.host import READ_LIMIT, Host, Missing, Node
from edged.hardware.processor import CPUINFO_KEYS
from edged.hardware.reading import tidy
from edged.hardware.thermal import read_temperatures, throttled

_NUMBERED = {
    "/sys/bus/pci/devices/": "0000:00:{:02x}.0",
    "/sys/bus/usb/devices/": "1-{}",
    "/sys/class/power_supply/": "supply{}",
}
_KEPT_LINES = {"/proc/meminfo": re.compile("MemTotal:"), "/proc/version": re.compile("Linux version")}
_MADE_HERE = ("/proc/self/", "/sys/fs/cgroup/")
_VALUE_LIMIT = 4096


def record(host: Host, present: Iterable[str] = ()) -> str:
    """The recording, in the format of `edged.hardware.host.TreeHost`.

    Args:
        host: the machine.
        present: patterns of further files, such as vendors' libraries, of which only the existence is recorded.
    """
    listener = _Listener(host)
    facts = gather(listener)
    read_temperatures(listener)
    throttled(listener)
    entries = _made_here(facts)
    entries.update((path, ("f", "")) for pattern in present for path in host.glob(pattern) if path.isprintable())
    numbering = _Numbering()
    for path, (kind, value) in sorted(listener.heard.items()):
        if not path.startswith(_MADE_HERE):
            entries[numbering.path(path)] = (kind, value)
    for path in sorted(listener.found):
        renamed = numbering.path(path)
        if not path.startswith(_MADE_HERE) and not any(
            known == renamed or known.startswith(f"{renamed}/") for known in entries
        ):
            entries[renamed] = ("e", "ENOENT")  # it is there, and nothing in it was of use
    entries = {path: entry for path, entry in entries.items() if path.isprintable()}
    head = [
        "# kind: recorded by edged, without serial numbers, addresses, slots and names",
        f"# board: {facts.model or facts.dmi.get('product_name', '') or facts.cpu.name or 'unknown'}",
    ]
    body = [f"{kind}\t{path}\t{json.dumps(value)}" for path, (kind, value) in sorted(entries.items())]
    return "\n".join([*head, *body]) + "\n"


def _made_here(facts: Facts) -> dict[str, tuple[str, str]]:
    allowed = ",".join(map(str, facts.cpu.allowed))
    made = {"/proc/self/status": ("f", f"Cpus_allowed_list:\t{allowed}\n"), "/proc/self/cgroup": ("f", "0::/\n")}
    if facts.memory_limit is not None:
        made["/sys/fs/cgroup/memory.max"] = ("f", f"{facts.memory_limit}\n")
    if facts.cpu_quota is not None:
        made["/sys/fs/cgroup/cpu.max"] = ("f", f"{round(facts.cpu_quota * 1_000_000)} 1000000\n")
    return made


class _Listener:
    """Passes every question on to a host and remembers the answers."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.heard: dict[str, tuple[str, str]] = {}
        self.found: set[str] = set()

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | Missing:
        content = self._host.read(path, limit)
        if not isinstance(content, Missing):
            self.heard[path] = ("f", _anonymous(path, content))
        elif content.errno != errno.ENOENT:
            self.heard[path] = ("e", errno.errorcode.get(content.errno, "EIO"))
        return content

    def glob(self, pattern: str) -> list[str]:
        found = self._host.glob(pattern)
        self.found.update(found)
        return found

    def link(self, path: str) -> str | None:
        target = self._host.link(path)
        if target is not None:
            # Detection uses the last part only; the rest may lead through slots.
            self.heard[path] = ("l", f"../{tidy(target.rstrip('/').rpartition('/')[2])}")
        return target

    def node(self, path: str) -> Node | None:
        node = self._host.node(path)
        if node is not None:
            owner = "root" if node.uid == 0 else "user"
            number = f"{node.rdev[0]}:{node.rdev[1]}" if node.rdev else "-"
            group = public_group(node) or "-"
            rights = "openable" if node.openable else "closed"
            self.heard[path] = ("c", f"{node.mode:04o} {owner}:{group} {number} {rights}")
        return node


class _Numbering:
    """Gives slots and batteries the names 1, 2, 3 ... in the order in which they come."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def path(self, path: str) -> str:
        for top, form in _NUMBERED.items():
            if path.startswith(top):
                name, *rest = path.removeprefix(top).split("/")
                new = self._names.setdefault((top, name), form.format(sum(key[0] == top for key in self._names) + 1))
                return top + "/".join([new, *(self._inner(part, name, new) for part in rest)])
        return path

    @staticmethod
    def _inner(part: str, name: str, new: str) -> str:
        """The interface 1-1.2:1.0 lies in the directory of its device 1-1.2."""
        return new + part.removeprefix(name) if part.startswith(f"{name}:") else part


def _anonymous(path: str, content: bytes) -> str:
    if path == "/proc/cpuinfo":
        return _cpuinfo(content.decode("utf-8", "replace"))
    words = content[:READ_LIMIT].decode("utf-8", "replace")
    if path in _KEPT_LINES:
        kept = (line for line in words.split("\n") if _KEPT_LINES[path].match(line))
        # Of "Linux version 6.1.0 (builder@host) ..." the first three words.
        words = "".join(f"{' '.join(line.split()[:3])}\n" for line in kept)
    elif path.endswith("/uevent"):
        words = "".join(f"{line}\n" for line in words.split("\n") if line.startswith("DRIVER="))
    parts = [tidy(part) for part in words[:_VALUE_LIMIT].rstrip("\n").split("\0")]
    # One character a byte: the reader of the tree gets the bytes of this machine back.
    return "\0".join(parts).encode().decode("latin-1") + ("" if "\0" in words else "\n")


def _cpuinfo(words: str) -> str:
    kept = []
    for line in words.split("\n"):
        key = " ".join(line.partition(":")[0].lower().split())
        if not key or key in CPUINFO_KEYS:
            kept.append(_line(line))
    return "\n".join(kept).encode().decode("latin-1")


def _line(line: str) -> str:
    key, colon, value = line.partition(":")
    return f"{key.strip()}\t: {tidy(value)}" if colon else ""
