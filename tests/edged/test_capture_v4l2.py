"""The V4L2 reader against the kernel's own header, and against drivers that are none. No real camera is needed."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pty
import shutil
import subprocess
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.capture.cameras import v4l2_abi as abi
from edged.capture.cameras.base import Picture, SourceError
from edged.capture.cameras.v4l2 import Camera
from edgekit.services import Source
from edgekit.vision.images import decode
from tests.support.models import picture
from tests.support.source_process import source

REQUESTS = ["QUERYCAP", "ENUM_FMT", "G_FMT", "S_FMT", "REQBUFS", "QUERYBUF", "QBUF", "DQBUF", "STREAMON", "S_PARM"]
OFFSETS = {
    "v4l2_format": (abi.Format, {"fmt": "fmt"}),
    "v4l2_buffer": (abi.Buffer, {"m": "m", "length": "length", "timestamp": "seconds", "sequence": "sequence"}),
    "v4l2_capability": (abi.Capability, {"device_caps": "device_caps"}),
    "v4l2_fmtdesc": (abi.FormatDescription, {"pixelformat": "pixelformat"}),
    "v4l2_streamparm": (abi.StreamParameters, {"parm": "parm"}),
    "v4l2_captureparm": (abi.CaptureParameters, {"timeperframe": "numerator"}),
    "v4l2_pix_format": (abi.PixelFormat, {"bytesperline": "bytesperline", "sizeimage": "sizeimage"}),
}


needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/usr/include/linux/videodev2.h").exists(),
    reason="needs a C compiler and the kernel's headers",
)
_DRIVER = Path(__file__).resolve().parents[1] / "support" / "fake_camera.c"


@needs_compiler
def test_structures_and_requests_are_those_of_the_kernel(tmp_path: Path) -> None:
    lines = [f'printf("%lu ", (unsigned long)VIDIOC_{name});' for name in REQUESTS]
    wanted = [getattr(abi, name) for name in REQUESTS]
    for struct, (ours, fields) in OFFSETS.items():
        lines.append(f'printf("%zu ", sizeof(struct {struct}));')
        wanted.append(ctypes.sizeof(ours))
        for field, name in fields.items():
            lines.append(f'printf("%zu ", offsetof(struct {struct}, {field}));')
            wanted.append(getattr(ours, name).offset)
    for name, value in {
        "V4L2_BUF_TYPE_VIDEO_CAPTURE": abi.VIDEO_CAPTURE, "V4L2_MEMORY_MMAP": abi.MEMORY_MMAP,
        "V4L2_CAP_VIDEO_CAPTURE": abi.CAP_VIDEO_CAPTURE, "V4L2_CAP_STREAMING": abi.CAP_STREAMING,
        "V4L2_CAP_DEVICE_CAPS": abi.CAP_DEVICE_CAPS, "V4L2_BUF_FLAG_ERROR": abi.BUF_FLAG_ERROR,
        "V4L2_BUF_FLAG_TIMESTAMP_MASK": abi.BUF_FLAG_TIMESTAMP_MASK,
        "V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC": abi.BUF_FLAG_TIMESTAMP_MONOTONIC,
        "V4L2_PIX_FMT_MJPEG": abi.MJPG, "V4L2_PIX_FMT_JPEG": abi.JPEG, "V4L2_PIX_FMT_YUYV": abi.YUYV,
    }.items():  # fmt: skip
        lines.append(f'printf("%lu ", (unsigned long){name});')
        wanted.append(value)
    source = tmp_path / "abi.c"
    includes = "#include <stdio.h>\n#include <stddef.h>\n#include <sys/time.h>\n#include <linux/videodev2.h>\n"
    source.write_text(includes + "int main(void) {" + "\n".join(lines) + "return 0;}")
    subprocess.run(["cc", "-o", str(tmp_path / "abi"), str(source)], check=True)
    found = subprocess.run([str(tmp_path / "abi")], capture_output=True, text=True, check=True).stdout
    assert [int(number) for number in found.split()] == wanted


class Driver:
    """A capture driver as far as the reader can see: ioctls, and buffers in a file that can be mapped."""

    def __init__(self, formats: list[int], size: tuple[int, int] = (64, 48), stride: int = 0) -> None:
        self.formats, self.size, self.stride = formats, size, stride
        self.capabilities = abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING
        self.length = 1 << 16
        self.descriptor = os.memfd_create("driver")
        os.ftruncate(self.descriptor, 4 * self.length)
        self.queued: list[int] = []
        self.filled: list[tuple[int, int, int, float]] = []
        self.streams = False
        self.rate: tuple[int, int] | None = None
        self.chosen = 0

    def fill(self, data: bytes, flags: int = abi.BUF_FLAG_TIMESTAMP_MONOTONIC, age: float = 0.0) -> None:
        """A frame arrives, if a buffer is free."""
        index = self.queued.pop(0)
        os.pwrite(self.descriptor, data, index * self.length)
        self.filled.append((index, len(data), flags, time.monotonic() - age))

    def ioctl(self, descriptor: int, request: int, argument: Any) -> None:
        assert descriptor == self.descriptor
        if request == abi.QUERYCAP:
            argument.capabilities = self.capabilities
        elif request == abi.ENUM_FMT:
            if argument.index >= len(self.formats):
                raise OSError(errno.EINVAL, "no more")
            argument.pixelformat = self.formats[argument.index]
        elif request in (abi.G_FMT, abi.S_FMT):
            pixels = argument.fmt.pix
            pixels.width, pixels.height = self.size
            pixels.bytesperline, self.chosen = self.stride, pixels.pixelformat
        elif request == abi.S_PARM:
            self.rate = (argument.parm.capture.numerator, argument.parm.capture.denominator)
            raise OSError(errno.ENOTTY, "not mine")
        elif request == abi.REQBUFS:
            argument.count = min(argument.count, 4)
        elif request == abi.QUERYBUF:
            argument.length, argument.m.offset = self.length, argument.index * self.length
        elif request == abi.QBUF:
            assert argument.index not in self.queued
            self.queued.append(argument.index)
        elif request == abi.DQBUF:
            assert self.streams
            if not self.filled:
                raise BlockingIOError(errno.EAGAIN, "none")
            index, used, flags, at = self.filled.pop(0)
            argument.index, argument.bytesused, argument.flags = index, used, flags
            argument.seconds, argument.microseconds = int(at), int(at % 1 * 1e6)
        elif request == abi.STREAMON:
            self.streams = True
        else:
            raise AssertionError(hex(request))


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    made: list[Driver] = []
    yield made
    for driver in made:
        os.close(driver.descriptor)


def opened(drivers: list[Driver], driver: Driver, **keys: Any) -> Camera:
    drivers.append(driver)
    return Camera(driver.descriptor, Source(kind="v4l2", path="/dev/video0", **keys), driver.ioctl)


def data_of(one: Picture) -> bytes:
    return one.data if isinstance(one.data, bytes) else one.data()


def test_mjpg_is_preferred_and_passed_on(drivers: list[Driver]) -> None:
    driver = Driver([abi.YUYV, abi.MJPG])
    camera = opened(drivers, driver, fps=12.5)
    assert camera.text == "MJPG 64x48" and driver.chosen == abi.MJPG and driver.rate == (1000, 12500)
    jpegs = [picture(0.5, kind=".jpg", seed=number) for number in range(10)]
    got = []
    for jpeg in jpegs:
        driver.fill(jpeg)
        got += list(camera.frames(lambda: True))
    assert [data_of(one) for one in got] == jpegs
    assert sorted(driver.queued) == [0, 1, 2, 3], "every buffer went back"


def test_times_are_the_drivers(drivers: list[Driver]) -> None:
    driver = Driver([abi.MJPG])
    camera = opened(drivers, driver)
    driver.fill(b"\xff\xd8", age=0.5)
    driver.fill(b"\xff\xd8", age=1e6)
    driver.fill(b"\xff\xd8", flags=0, age=0.5)
    ages = [time.time() - one.captured_at for one in camera.frames(lambda: True)]
    assert ages == pytest.approx([0.5, 0.0, 0.0], abs=0.1)


def test_damaged_and_unwanted_frames_are_left_out(drivers: list[Driver]) -> None:
    driver = Driver([abi.MJPG])
    camera = opened(drivers, driver)
    driver.fill(b"torn", flags=abi.BUF_FLAG_ERROR)
    driver.fill(b"")
    driver.fill(b"good")
    assert [data_of(one) for one in camera.frames(lambda: True)] == [b"good"]
    driver.fill(b"good")
    assert list(camera.frames(lambda: False)) == []
    assert len(driver.queued) == 4


@pytest.mark.parametrize("stride", [0, 160])
def test_yuyv_becomes_a_jpeg_of_the_right_colours(drivers: list[Driver], stride: int) -> None:
    driver = Driver([abi.YUYV], stride=stride)
    camera = opened(drivers, driver)
    rows = np.zeros((48, stride or 128), np.uint8)
    rows[:, :128] = np.tile(np.array([82, 90, 82, 240], np.uint8), 32)  # BT.601 red
    driver.fill(rows.tobytes())
    driver.fill(rows.tobytes()[:1000])
    (one,) = camera.frames(lambda: True)
    image = decode(data_of(one))
    assert image.shape == (48, 64, 3)
    assert np.abs(image.reshape(-1, 3).mean(axis=0) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize(
    ("change", "keys", "said"),
    [
        ({"capabilities": abi.CAP_STREAMING}, {}, "captures no video"),
        ({"formats": [abi.fourcc("NV12")]}, {}, "neither MJPG nor YUYV, only NV12"),
        ({}, {"width": 640, "height": 480}, "no pictures of 640x480 pixels; the nearest are 64x48"),
    ],
)
def test_cameras_that_do_not_fit(
    drivers: list[Driver], change: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    driver = Driver([abi.MJPG])
    for name, value in change.items():
        setattr(driver, name, value)
    with pytest.raises(SourceError, match=said):
        opened(drivers, driver, **keys)


# --- the whole process, and a driver that knows the kernel's own structures -------------------------------------------


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("camera") / "camera.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(_DRIVER), "-ldl"], check=True)
    return library


class Plugged:
    """A camera that is plugged in: a terminal, which the preloaded driver answers for."""

    def __init__(self, folder: Path, driver: Path, formats: str, frames: list[bytes]) -> None:
        for number, frame in enumerate(frames):
            (folder / f"frame-{number}").write_bytes(frame)
        self._cable, self._device = pty.openpty()
        tty.setraw(self._device)
        self.path = os.ttyname(self._device)
        self.environ = {
            "LD_PRELOAD": str(driver),
            "FAKE_CAMERA": self.path,
            "FAKE_FORMATS": formats,
            "FAKE_FRAMES": str(folder / "frame-%d"),
        }

    def expose(self, sign: bytes = b".") -> None:
        """A frame; `x` for one that is damaged on its way."""
        os.write(self._cable, sign)

    def unplug(self) -> None:
        if self._cable >= 0:
            os.close(self._cable)
            os.close(self._device)
            self._cable = -1


@needs_compiler
def test_the_process_reads_mjpg_until_the_camera_is_unplugged(tmp_path: Path, preloaded: Path) -> None:
    jpegs = [picture(0.5, kind=".jpg", seed=number) for number in range(12)]
    plugged = Plugged(tmp_path, preloaded, "YUYVMJPG", jpegs)
    with source(plugged.environ, kind="v4l2", path=plugged.path, fps=30.0) as one:
        assert one.opened() == "MJPG 64x48"
        got = []
        for number in range(10):
            time.sleep(0.04)  # as the frame clock wants it
            plugged.expose(b"x" if number == 3 else b".")
            if number != 3:
                frame, data = one.frame()
                assert abs(time.time() - frame.captured_at) < 1.0
                got.append(data)
        assert got == [jpegs[number] for number in range(10) if number != 3]
        plugged.unplug()
        assert one.trouble() == "it was unplugged"


@needs_compiler
def test_the_process_reads_yuyv_and_encodes_it(tmp_path: Path, preloaded: Path) -> None:
    red = np.tile(np.array([82, 90, 82, 240], np.uint8), 32 * 48).tobytes()
    plugged = Plugged(tmp_path, preloaded, "YUYV", [red[:1000], red])
    with source(plugged.environ, kind="v4l2", path=plugged.path, width=64, height=48) as one:
        assert one.opened() == "YUYV 64x48"
        plugged.expose()  # cut short
        time.sleep(0.05)  # two at the same time would be one too many for the frame clock
        plugged.expose()
        _, data = one.frame()
    plugged.unplug()
    image = decode(data)
    assert image.shape == (48, 64, 3)
    assert np.abs(image.reshape(-1, 3).mean(axis=0) - [255, 0, 0]).max() < 8


@needs_compiler
def test_the_process_says_what_a_camera_lacks(tmp_path: Path, preloaded: Path) -> None:
    plugged = Plugged(tmp_path, preloaded, "NV12", [])
    with source(plugged.environ, kind="v4l2", path=plugged.path) as one:
        assert one.trouble() == "it has neither MJPG nor YUYV, only NV12"
    plugged.unplug()


def test_the_buffers_are_really_mapped() -> None:
    assert mmap.PAGESIZE <= 1 << 16, "the scripted driver's offsets are multiples of a page"
