"""Is there memory for one more worker? An estimate before a start, so that a model is refused instead of the machine
running out of memory.

What a model needs is what loading and proving it added in a worker before, or else a multiple of its files' size. What
there is, is the least of the machine's available memory, the room in every control group above this process, and the
limit of a single process.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from edged.plan import Choice
from edged.worker import Worker
from edgekit.messages import Ready
from edgekit.packages import MANIFEST_NAME, Package, PackageError, checkpoint_files, open_package

FACTOR = 2.5
"""Memory for each byte of a model file: a runtime holds the file, its own copy of the weights, and room to work in."""
SLACK = 16 << 20
"""Beside that for each model: the memory of one run."""
BASE = 120 << 20
"""A worker without a model, before the first one has told."""
SPARE = 32 << 20
"""Is to stay free, for everything else on the machine."""
LIMIT_SHARE = 0.75
"""Of the machine's memory: what a worker limits itself to (see `edged.serve`)."""
_MIB = 1 << 20
_UNLIMITED = 1 << 60

Way = Literal["beside", "after"]


class Room(NamedTuple):
    """Bytes that new processes may use together, and one process alone."""

    available: int
    process: int = _UNLIMITED


class Verdict(NamedTuple):
    """`way` to start a successor: beside the present worker, after its end, or None: not at all."""

    way: Way | None
    need: int
    missing: int = 0  # bytes, where `way` is None

    @property
    def sentence(self) -> str:
        """Why not."""
        return (
            f"its worker would need about {_mib(self.need)} of memory, {_mib(self.missing)} more than there is; "
            "free some, or choose a smaller model"
        )


def judge(need: int, room: Room, freed: int) -> Verdict:
    """Pure. `need` is that of the successor, `freed` what the end of the present worker gives back."""
    if need <= min(room.available - SPARE, room.process):
        return Verdict("beside", need)
    most = min(room.available + freed - SPARE, room.process)
    return Verdict("after", need) if need <= most else Verdict(None, need, need - most)


class Memory:
    """Knows what models need, and asks the machine what there is."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where `proc` and `sys` are."""
        self._root = root
        self._base = BASE
        self._measured: dict[str, int] = {}
        self._files: dict[str, int] = {}

    def learn(self, ready: Ready) -> None:
        """A worker has measured."""
        self._base = ready.base or self._base
        self._measured.update(ready.memory)

    def need(self, refs: Iterable[str], packages: Mapping[str, Path]) -> int:
        """Bytes for a worker with these models. Reads the tables of packages that no worker has loaded yet."""
        return self._base + sum(self.of(ref, packages) for ref in set(refs))

    def of(self, ref: str, packages: Mapping[str, Path]) -> int:
        """Bytes for one model."""
        if ref in self._measured:
            return self._measured[ref] + SLACK
        if ref not in self._files:
            try:
                self._files[ref] = _file_bytes(open_package(packages[ref], verify=False))
            except (KeyError, PackageError, OSError):
                return SLACK  # the worker will say what is wrong with it
        return int(FACTOR * self._files[ref]) + SLACK

    async def verdict(self, choices: Iterable[Choice], packages: Mapping[str, Path], present: Worker | None) -> Verdict:
        """How a worker for these choices can be started now."""
        refs = [ref for choice in choices for ref in (choice.ref, choice.head) if ref]
        return await asyncio.to_thread(self._verdict, refs, packages, present)

    def _verdict(self, refs: list[str], packages: Mapping[str, Path], present: Worker | None) -> Verdict:
        freed = _own_bytes(present.pid) if present is not None else 0
        return judge(self.need(refs, packages), room(self._root), freed)


def room(root: Path = Path("/")) -> Room:
    """What there is now. What cannot be read limits nothing."""
    meminfo = _table(root / "proc/meminfo")
    available = meminfo.get("MemAvailable", _UNLIMITED >> 10) << 10
    for group, names in _groups(root):
        limit, used = (_number(group / name) for name in names[:2])
        if limit is not None and used is not None and limit < _UNLIMITED:
            # Cached files that nobody has used lately are given up before anything is refused.
            cached = _table(group / "memory.stat").get(names[2], 0)
            available = min(available, max(0, limit - used + cached))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    total = meminfo.get("MemTotal", 0) << 10
    process = int(LIMIT_SHARE * total) if total else _UNLIMITED
    return Room(available, process if hard == resource.RLIM_INFINITY else min(process, hard))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Directories of this process's control groups up to the top, with the names of what is in them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth]), names


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is none, or "max"
        return None


def _table(path: Path) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in re.findall(r"^(\w+):? +(\d+)", path.read_text(), re.MULTILINE)}
    except OSError:
        return {}


def _file_bytes(package: Package) -> int:
    """Of the largest variant, with everything beside it that may belong to it."""
    manifest = package.manifest
    variants = {variant.file for variant in manifest.variants}
    samples = (sample.file for sample in manifest.samples)
    others = {MANIFEST_NAME, manifest.labels, *samples, *variants, *checkpoint_files(manifest)}
    beside = sum(size for path, size in package.sizes.items() if path not in others)
    return max((package.sizes[path] for path in variants), default=0) + beside  # of a head package all are beside


def _own_bytes(pid: int) -> int:
    """What the end of a process gives back: without the pages of libraries that others use too."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except (psutil.Error, OSError):
        return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{max(1, round(size / _MIB))} MiB"
