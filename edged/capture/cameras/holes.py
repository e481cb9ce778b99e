"""Which frames of a stream with lost packets are whole. What FFmpeg makes of the others looks like a picture.

RTP over UDP loses packets where a network or a processor is busy. FFmpeg decodes what came: a smeared frame, and others
that build on it, up to the next one that stands for itself. It logs that a packet is missing, and says so nowhere else
that OpenCV would pass on. So its log is listened to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

_SAYS_SO = b"RTP: missed"  # libavformat/rtpdec.c, since 2010
_Log = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_found = 0


def _hear(context: int | None, level: int, words: bytes | None, values: int | None) -> None:
    """FFmpeg's log callback: gets the words without their values, so that no address is in them."""
    global _found
    if words is not None and words.startswith(_SAYS_SO):
        _found += 1


_heard = _Log(_hear)  # FFmpeg keeps a pointer to it


def listen() -> Callable[[], int]:
    """From now on the function returned tells how many holes were found. Call it after OpenCV is loaded.

    Raises OSError where FFmpeg is no shared library of its own.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if "/libavutil" in f"/{path}":
            ctypes.CDLL(f"/{path}").av_log_set_callback(_heard)
            return lambda: _found
    raise OSError("FFmpeg's libavutil is not loaded")


class Whole:
    """Judges one frame after the other. Pure."""

    def __init__(self) -> None:
        self._holes = self._next_to_it = 0
        self._broken = False

    def look(self, holes: int, stands_alone: bool) -> bool:
        """True for a whole frame. `holes`: how many were found until it came; `stands_alone`: it needs no other one."""
        if holes > self._holes:
            # A frame is given out when the next one begins: the hole is in this one or in that one.
            self._holes, self._next_to_it, self._broken = holes, 2, True
        if self._next_to_it:
            self._next_to_it -= 1
        elif stands_alone:
            self._broken = False
        return not self._broken
