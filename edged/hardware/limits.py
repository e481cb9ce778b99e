"""What the control groups leave to this process: memory, CPU time, CPUs. Versions 1 and 2 of the interface."""

from __future__ import annotations

import msgspec

from edged.hardware.host import Host
from edged.hardware.reading import cpus, lines, number, text

_TOP = "/sys/fs/cgroup"
_DEPTH = 32
# Version 1 says "no limit" with the largest multiple of the page size below 2**63.
_UNLIMITED = 2**60


class Limits(msgspec.Struct, frozen=True):
    """`memory` in bytes, `quota` in CPUs' worth of time, `allowed` CPU numbers; None without a limit."""

    memory: int | None
    quota: float | None
    allowed: list[int] | None


def limits(host: Host) -> Limits:
    """The tightest limits on the way from this process's group to the top.

    In a container the group's own path may not be visible: then its ancestors', which is the top that it sees.
    """
    groups = _groups(host)
    unified = [f"{_TOP}{path}" for path in _ancestors(groups.get("", "/"))]
    memory = [number(host, f"{group}/memory.max") for group in unified]
    memory += [number(host, f"{group}/memory.limit_in_bytes") for group in _of_version_1(groups, "memory")]
    quotas = [_quota(text(host, f"{group}/cpu.max")) for group in unified]
    quotas += [
        _quota(f"{number(host, f'{group}/cpu.cfs_quota_us')} {number(host, f'{group}/cpu.cfs_period_us')}")
        for group in _of_version_1(groups, "cpu")
    ]
    names = [f"{group}/cpuset.cpus.effective" for group in unified]
    names += [f"{group}/cpuset.effective_cpus" for group in _of_version_1(groups, "cpuset")]
    return Limits(
        memory=min((value for value in memory if value is not None and 0 < value < _UNLIMITED), default=None),
        quota=min((value for value in quotas if value is not None), default=None),
        allowed=next((found for name in names if (found := cpus(text(host, name, 4096)))), None),
    )


def _groups(host: Host) -> dict[str, str]:
    """Controller -> path of this process's group; "" is version 2."""
    found: dict[str, str] = {}
    for line in lines(host, "/proc/self/cgroup", 65_536)[:64]:
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and path.startswith("/"):
            found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _of_version_1(groups: dict[str, str], controller: str) -> list[str]:
    if controller not in groups:
        return []
    return [f"{_TOP}/{controller}{path}" for path in _ancestors(groups[controller])]


def _ancestors(path: str) -> list[str]:
    """ "/a/b" -> "/a/b", "/a", "". A path that leaves the tree counts as the top."""
    parts = [part for part in path[:4096].split("/") if part]
    if ".." in parts or len(parts) > _DEPTH:
        parts = []
    return ["".join(f"/{part}" for part in parts[:length]) for length in range(len(parts), -1, -1)]


def _quota(value: str) -> float | None:
    quota, _, period = value.partition(" ")
    if not (quota.isdecimal() and period.isdecimal() and len(value) < 40):
        return None
    return round(int(quota) / int(period), 3) if int(quota) > 0 and int(period) > 0 else None
