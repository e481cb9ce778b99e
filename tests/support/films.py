"""Films for tests, made by the program ffmpeg."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
ENCODERS = {
    "mjpeg": ("-q:v", "3"),
    "libx264": ("-pix_fmt", "yuv420p", "-bf", "0", "-g", "10"),
    "libx265": ("-pix_fmt", "yuv420p", "-tag:v", "hvc1", "-x265-params", "bframes=0:keyint=10:pools=1:log-level=error"),
}


def film(path: Path, codec: str, seconds: float = 2.0, fps: int = 10, size: str = "160x128") -> Path:
    """Makes it; one key frame in ten, where the codec has such."""
    spec = f"testsrc=size={size}:rate={fps}"
    options = ["-t", str(seconds), "-c:v", codec, *ENCODERS[codec]]
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", spec, *options, str(path)], check=True)
    return path


def frames_of(path: Path) -> np.ndarray:
    """What ffmpeg itself makes of a film: NxHxWx3, RGB."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 128, 160, 3)
