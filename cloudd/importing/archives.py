"""ZIP archives of strangers, whose directory is bounded before it is read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

MAX_ENTRIES = 20_000
"""Files in an archive."""
MAX_DIRECTORY = 16 << 20
"""Bytes of its directory: Python reads all of it and makes an object of every entry."""
MAX_UNPACKED = 8 << 30
"""Bytes of all files together, as the directory says."""
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_TAIL = 22 + 65_535 + 20
"""Bytes in which the end of an archive lies: its record, the longest comment, the locator of the 64-bit record."""


class ArchiveTooLarge(ValueError):
    """An archive with more files or bytes than any model has."""


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a ZIP archive. Raises ArchiveTooLarge, zipfile.BadZipFile, OSError."""
    entries, size = _directory(path)
    if entries > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise ArchiveTooLarge(f"it has {entries} files; {MAX_ENTRIES} are allowed")
    archive = zipfile.ZipFile(path)
    unpacked = sum(one.file_size for one in archive.infolist())
    if len(archive.infolist()) > MAX_ENTRIES or unpacked > MAX_UNPACKED:
        archive.close()
        raise ArchiveTooLarge(f"it would unpack to {unpacked} bytes; {MAX_UNPACKED} are allowed")
    return archive


def _directory(path: Path) -> tuple[int, int]:
    """How many entries and bytes the archive's directory has, by its own word (APPNOTE.TXT 4.3.14 to 4.3.16)."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - _TAIL))
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) < at + 22:
            raise zipfile.BadZipFile("it has no directory")
        entries, size = struct.unpack_from("<HI", tail, at + 10)
        if at >= 20 and tail.startswith(_LOCATOR64, at - 20):
            (place,) = struct.unpack_from("<Q", tail, at - 12)
            if place >= length:
                raise zipfile.BadZipFile("its directory lies behind its end")
            file.seek(place)
            record = file.read(56)
            if len(record) < 56 or not record.startswith(_END64):
                raise zipfile.BadZipFile("its directory is damaged")
            more, larger = struct.unpack_from("<QQ", record, 32)
            entries = max(more, entries if entries != 0xFFFF else 0)
            size = max(larger, size if size != 0xFFFF_FFFF else 0)
    return entries, size
