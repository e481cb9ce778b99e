"""The part of Linux's video capture interface that a reader needs: structures and request numbers.

From <linux/videodev2.h>. ctypes lays the structures out as the C compiler of this machine does, so the request
numbers, which contain the sizes, are right on 32 and 64 bits alike.
"""

from __future__ import annotations

import ctypes

VIDEO_CAPTURE = 1  # enum v4l2_buf_type
MEMORY_MMAP = 1  # enum v4l2_memory
CAP_VIDEO_CAPTURE = 0x0000_0001
CAP_STREAMING = 0x0400_0000
CAP_DEVICE_CAPS = 0x8000_0000
CAP_TIMEPERFRAME = 0x1000
BUF_FLAG_ERROR = 0x40
BUF_FLAG_TIMESTAMP_MASK = 0xE000
BUF_FLAG_TIMESTAMP_MONOTONIC = 0x2000


def fourcc(code: str) -> int:
    """A pixel format's number: its four characters, the first one lowest."""
    return int.from_bytes(code.encode("ascii"), "little")


MJPG, JPEG, YUYV = fourcc("MJPG"), fourcc("JPEG"), fourcc("YUYV")


class Capability(ctypes.Structure):
    """struct v4l2_capability"""

    _fields_ = [
        ("driver", ctypes.c_char * 16),
        ("card", ctypes.c_char * 32),
        ("bus_info", ctypes.c_char * 32),
        ("version", ctypes.c_uint32),
        ("capabilities", ctypes.c_uint32),
        ("device_caps", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
    ]


class FormatDescription(ctypes.Structure):
    """struct v4l2_fmtdesc"""

    _fields_ = [
        ("index", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("description", ctypes.c_char * 32),
        ("pixelformat", ctypes.c_uint32),
        ("mbus_code", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
    ]


class PixelFormat(ctypes.Structure):
    """struct v4l2_pix_format"""

    _fields_ = [
        (name, ctypes.c_uint32)
        for name in (
            "width", "height", "pixelformat", "field", "bytesperline", "sizeimage",
            "colorspace", "priv", "flags", "ycbcr_enc", "quantization", "xfer_func",
        )
    ]  # fmt: skip


class _FormatUnion(ctypes.Union):
    # `window`, a member that is not used here, holds pointers: they decide size and alignment.
    _fields_ = [("pix", PixelFormat), ("raw", ctypes.c_uint8 * 200), ("align", ctypes.c_void_p)]


class Format(ctypes.Structure):
    """struct v4l2_format"""

    _fields_ = [("type", ctypes.c_uint32), ("fmt", _FormatUnion)]


class CaptureParameters(ctypes.Structure):
    """struct v4l2_captureparm"""

    _fields_ = [
        ("capability", ctypes.c_uint32),
        ("capturemode", ctypes.c_uint32),
        ("numerator", ctypes.c_uint32),
        ("denominator", ctypes.c_uint32),
        ("extendedmode", ctypes.c_uint32),
        ("readbuffers", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 4),
    ]


class _ParameterUnion(ctypes.Union):
    _fields_ = [("capture", CaptureParameters), ("raw", ctypes.c_uint8 * 200)]


class StreamParameters(ctypes.Structure):
    """struct v4l2_streamparm"""

    _fields_ = [("type", ctypes.c_uint32), ("parm", _ParameterUnion)]


class RequestBuffers(ctypes.Structure):
    """struct v4l2_requestbuffers"""

    _fields_ = [
        ("count", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("memory", ctypes.c_uint32),
        ("capabilities", ctypes.c_uint32),
        ("flags", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 3),
    ]


class _Place(ctypes.Union):
    _fields_ = [("offset", ctypes.c_uint32), ("userptr", ctypes.c_ulong), ("planes", ctypes.c_void_p)]


class Buffer(ctypes.Structure):
    """struct v4l2_buffer"""

    _fields_ = [
        ("index", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("bytesused", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("field", ctypes.c_uint32),
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("timecode", ctypes.c_uint32 * 4),
        ("sequence", ctypes.c_uint32),
        ("memory", ctypes.c_uint32),
        ("m", _Place),
        ("length", ctypes.c_uint32),
        ("reserved2", ctypes.c_uint32),
        ("request_fd", ctypes.c_int32),
    ]


_READ, _WRITE = 2, 1


def _request(direction: int, number: int, argument: type[ctypes.Structure] | type[ctypes.c_int]) -> int:
    """_IOC of <asm-generic/ioctl.h>, as on x86, ARM and RISC-V."""
    return direction << 30 | ctypes.sizeof(argument) << 16 | ord("V") << 8 | number


QUERYCAP = _request(_READ, 0, Capability)
ENUM_FMT = _request(_READ | _WRITE, 2, FormatDescription)
G_FMT = _request(_READ | _WRITE, 4, Format)
S_FMT = _request(_READ | _WRITE, 5, Format)
REQBUFS = _request(_READ | _WRITE, 8, RequestBuffers)
QUERYBUF = _request(_READ | _WRITE, 9, Buffer)
QBUF = _request(_READ | _WRITE, 15, Buffer)
DQBUF = _request(_READ | _WRITE, 17, Buffer)
STREAMON = _request(_WRITE, 18, ctypes.c_int)
S_PARM = _request(_READ | _WRITE, 22, StreamParameters)
