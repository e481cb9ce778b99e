"""A camera of this machine (USB, CSI) through V4L2: memory-mapped buffers, no library in between.

MJPG is taken where the camera has it and passed on undecoded; otherwise YUYV is taken and encoded. The buffers belong
to the driver, so every frame that is wanted is copied out at once and its buffer handed back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import time
from collections.abc import Callable, Iterator

from edged.capture.cameras import v4l2_abi as abi
from edged.capture.cameras.base import Picture, SourceError, encoder, opencv, reason
from edgekit.services import Source

BUFFERS = 4
_MAX_FORMATS = 64

Ioctl = Callable[[int, int, ctypes.Structure | ctypes.c_int], object]


def read(source: Source, wanted: Callable[[], bool], opened: Callable[[str], None]) -> Iterator[Picture]:
    """Frames of the camera `source.path`; see Reader. Ends only with SourceError."""
    try:
        descriptor = os.open(source.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
            raise SourceError("it is no camera")
        camera = Camera(descriptor, source)
        opened(camera.text)
        while True:
            select.select([descriptor], [], [])
            yield from camera.frames(wanted)
    except OSError as error:
        raise SourceError(_why(error)) from None


def _why(error: OSError) -> str:
    return {
        errno.ENOENT: "there is no such device: is the camera plugged in?",
        errno.EACCES: "edged may not open it: its user must be in the group video",
        errno.EPERM: "edged may not open it: the service manager's device rules refuse it",
        errno.EBUSY: "another service or program uses it",
        errno.ENODEV: "it was unplugged",
        errno.ENXIO: "it was unplugged",
    }.get(error.errno or 0, reason(error))


class Camera:
    """An opened device, streaming. Raises OSError and SourceError."""

    def __init__(self, descriptor: int, source: Source, ioctl: Ioctl = fcntl.ioctl) -> None:
        """`ioctl(descriptor, request, structure)` changes the structure in place and raises OSError."""
        self._descriptor, self._ioctl = descriptor, ioctl
        self._check()
        picked = self._set_format(source)
        self._size = (picked.width, picked.height)
        self._stride = picked.bytesperline or 2 * picked.width
        self._encoded = picked.pixelformat in (abi.MJPG, abi.JPEG)
        if not self._encoded and self._stride * picked.height > 1 << 28:
            raise SourceError(f"its pictures of {picked.width}x{picked.height} pixels are too large")
        if source.fps:
            self._set_rate(source.fps)
        self._maps = self._map()
        self._call(abi.STREAMON, ctypes.c_int(abi.VIDEO_CAPTURE))
        self.text = f"{'MJPG' if self._encoded else 'YUYV'} {picked.width}x{picked.height}"

    def frames(self, wanted: Callable[[], bool]) -> Iterator[Picture]:
        """The frames that are there; damaged and unwanted ones are left out."""
        while True:
            buffer = abi.Buffer(type=abi.VIDEO_CAPTURE, memory=abi.MEMORY_MMAP)
            try:
                self._call(abi.DQBUF, buffer)
            except BlockingIOError:
                return
            data: bytes | None = None
            captured_at = _captured_at(buffer)
            used = buffer.bytesused
            if not buffer.flags & abi.BUF_FLAG_ERROR and 0 < used <= len(self._maps[buffer.index]) and wanted():
                data = self._maps[buffer.index][:used]
            self._call(abi.QBUF, buffer)
            if data is not None and (made := self._picture(data)) is not None:
                yield Picture(made, captured_at)

    def _picture(self, data: bytes) -> bytes | Callable[[], bytes] | None:
        if self._encoded:
            return data
        width, height = self._size
        if len(data) < self._stride * height:
            return None  # cut short: USB lost a part
        cv2 = opencv()
        import numpy as np

        rows = np.frombuffer(data, np.uint8)[: self._stride * height].reshape(height, self._stride)
        pairs = np.ascontiguousarray(rows[:, : 2 * width]).reshape(height, width, 2)
        return lambda: encoder(cv2.cvtColor(pairs, cv2.COLOR_YUV2BGR_YUYV))()

    def _check(self) -> None:
        capability = abi.Capability()
        self._call(abi.QUERYCAP, capability)
        has = capability.capabilities
        if has & abi.CAP_DEVICE_CAPS:
            has = capability.device_caps
        if not has & abi.CAP_VIDEO_CAPTURE or not has & abi.CAP_STREAMING:
            raise SourceError("it captures no video (a camera often has several devices: try its other ones)")

    def _formats(self) -> list[int]:
        found = []
        for index in range(_MAX_FORMATS):
            description = abi.FormatDescription(index=index, type=abi.VIDEO_CAPTURE)
            try:
                self._call(abi.ENUM_FMT, description)
            except OSError as error:
                if error.errno == errno.EINVAL:  # that was the last one
                    break
                raise
            found.append(description.pixelformat)
        return found

    def _set_format(self, source: Source) -> abi.PixelFormat:
        has = self._formats()
        wish = next((one for one in (abi.MJPG, abi.JPEG, abi.YUYV) if one in has), None)
        if wish is None:
            names = ", ".join(one.to_bytes(4, "little").decode("latin-1") for one in has) or "none"
            raise SourceError(f"it has neither MJPG nor YUYV, only {names}")
        form = abi.Format(type=abi.VIDEO_CAPTURE)
        self._call(abi.G_FMT, form)
        pixels = form.fmt.pix
        pixels.pixelformat, pixels.field, pixels.bytesperline, pixels.sizeimage = wish, 0, 0, 0
        if source.width:
            pixels.width, pixels.height = source.width, source.height
        self._call(abi.S_FMT, form)
        got: abi.PixelFormat = form.fmt.pix
        if got.pixelformat != wish:
            raise SourceError("it does not give the format that it announces")
        if source.width and (got.width, got.height) != (source.width, source.height):
            raise SourceError(
                f"it has no pictures of {source.width}x{source.height} pixels; the nearest are {got.width}x{got.height}"
            )
        return got

    def _set_rate(self, fps: float) -> None:
        """A wish: cameras that cannot do it keep their own rate, and the frame clock does the rest."""
        parameters = abi.StreamParameters(type=abi.VIDEO_CAPTURE)
        parameters.parm.capture.numerator, parameters.parm.capture.denominator = 1000, max(1, round(fps * 1000))
        try:
            self._call(abi.S_PARM, parameters)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY, errno.EIO):
                raise

    def _map(self) -> list[mmap.mmap]:
        request = abi.RequestBuffers(count=BUFFERS, type=abi.VIDEO_CAPTURE, memory=abi.MEMORY_MMAP)
        self._call(abi.REQBUFS, request)
        if request.count < 2:
            raise SourceError("the driver has too little memory for it")
        maps = []
        for index in range(request.count):
            buffer = abi.Buffer(index=index, type=abi.VIDEO_CAPTURE, memory=abi.MEMORY_MMAP)
            self._call(abi.QUERYBUF, buffer)
            maps.append(mmap.mmap(self._descriptor, buffer.length, offset=buffer.m.offset))
            self._call(abi.QBUF, buffer)
        return maps

    def _call(self, request: int, argument: ctypes.Structure | ctypes.c_int) -> None:
        self._ioctl(self._descriptor, request, argument)


def _captured_at(buffer: abi.Buffer) -> float:
    """Seconds since the epoch. Drivers stamp with the monotonic clock, when the first byte or the last one came."""
    now = time.time()
    if buffer.flags & abi.BUF_FLAG_TIMESTAMP_MASK != abi.BUF_FLAG_TIMESTAMP_MONOTONIC:
        return now
    age = time.monotonic() - (buffer.seconds + buffer.microseconds / 1e6)
    return now - age if 0.0 <= age < 10.0 else now
