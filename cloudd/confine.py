"""Confines a child to its own folder by Landlock: it can write nowhere else, and opens no TCP connection.

TorchScript and SavedModel are programs, and some of their operators write files. Linux has had Landlock since 5.13 and
lets every process give up rights, without being root; the network since 6.7. Where the kernel has none, or it is
switched off, a child runs with the user's rights. Numbers and layouts are those of linux/landlock.h; the system calls
have one number on all processors.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
_VERSION = 1 << 0
_PATH_BENEATH = 1
_WRITE_FILE = 1 << 1
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
"""To write to files, and to make and remove files, folders, links, sockets, pipes and devices."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_TCP = 1 << 0 | 1 << 1
_FOLDER = os.O_PATH | os.O_CLOEXEC


@contextmanager
def confined(folder: Path) -> Iterator[Callable[[], None]]:
    """What a child calls before it executes anything (`preexec_fn`); it does nothing where there is no Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    if version < 1:
        yield lambda: None
        return
    rights = _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("=QQ", rights, _TCP) if version >= 4 else struct.pack("=Q", rights)
    rules = libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if rules < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused a ruleset")
    try:
        _allow(libc, rules, folder, rights)
        _allow(libc, rules, Path("/dev/null"), _WRITE_FILE | (rights & _TRUNCATE))

        def restrict() -> None:
            if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT, rules, ctypes.c_uint32(0)):
                raise OSError(ctypes.get_errno(), "Landlock could not be switched on")

        yield restrict
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, _FOLDER)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        if libc.syscall(_ADD, rules, _PATH_BENEATH, rule, ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), f"Landlock refused a rule for {path}")
    finally:
        os.close(descriptor)
