"""Bounded reading of small text files through a host. Nothing here raises, whatever the files hold."""

from __future__ import annotations

import re

from edged.hardware.host import Host, Missing

TEXT_LIMIT = 256
"""Characters of one value."""
CPU_LIMIT = 4096
"""CPU numbers at and above it are garbage."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
# A controller's battery or a sensor may carry the address of its radio in its name.
_ADDRESS = re.compile(r"(?i)(?<![0-9a-z])[0-9a-f]{2}(?:[:_-][0-9a-f]{2}){5}(?![0-9a-z])")
_UUID = re.compile(r"(?i)(?<![0-9a-z])[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?![0-9a-z])")


def text(host: Host, path: str, limit: int = TEXT_LIMIT) -> str:
    """The file's text up to a NUL, in one line, without control characters and surrounding space; "" if unreadable."""
    return strings(host, path, limit)[0]


def strings(host: Host, path: str, limit: int = 4096) -> list[str]:
    """The NUL-separated strings of a device-tree property, at least one (which may be "")."""
    content = host.read(path)
    if isinstance(content, Missing):
        return [""]
    parts = content[: 4 * limit].decode("utf-8", "replace").rstrip("\0\n").split("\0")
    return [tidy(part)[:limit] for part in parts]


def tidy(value: str) -> str:
    """Without control characters, radio addresses and UUIDs."""
    return _UUID.sub("uuid", _ADDRESS.sub("address", _CONTROL.sub(" ", value))).strip()


def number(host: Host, path: str) -> int | None:
    """The file as a decimal or `0x` number within 64 bits."""
    value = text(host, path, 32).split(" ")[0]
    try:
        found = int(value, 0 if value.lower().startswith("0x") else 10)
    except ValueError:
        return None
    return found if -(2**63) <= found < 2**64 else None


def digits(host: Host, path: str, length: int) -> str:
    """A hex number such as "0x8086" as lower-case digits without the prefix; "" for anything else."""
    value = text(host, path, 32).lower().removeprefix("0x")
    return value if re.fullmatch(f"[0-9a-f]{{{length}}}", value) else ""


def cpus(value: str) -> list[int]:
    """CPU numbers of a list such as "0-3,8" or "0 1 2", sorted; what is no number is left out."""
    found: set[int] = set()
    for part in re.split(r"[,\s]+", value[:4096]):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match:
            first = int(match[1])
            found.update(range(first, min(int(match[2] or first) + 1, CPU_LIMIT)))
    return sorted(found)


def lines(host: Host, path: str, limit: int) -> list[str]:
    """The file's lines, as text."""
    content = host.read(path, limit)
    return [] if isinstance(content, Missing) else content.decode("utf-8", "replace").split("\n")


def name_of_link(host: Host, path: str) -> str:
    """The last component of a link's target, such as the driver a device is bound to; "" if there is no link."""
    return tidy((host.link(path) or "").rstrip("/").rpartition("/")[2])[:TEXT_LIMIT]
