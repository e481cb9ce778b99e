"""Video through OpenCV's FFmpeg: what network cameras and recordings have in common."""

from __future__ import annotations

import os
from collections.abc import Callable

from edged.capture.cameras.base import OPEN_S, SourceError, encoder, opencv

READ_S = 60.0
"""How long OpenCV may wait for one frame. The worker watches over that too, with the source's own `silent_s`."""


class Video:
    """An opened video. `grab` waits for the next frame, `take` gives the grabbed one."""

    def __init__(self, address: str, options: str) -> None:
        """`address`: URL or absolute path; `options`: for FFmpeg, "key;value|key;value". Raises SourceError."""
        # FFmpeg writes addresses, and with them passwords, into its messages; what matters is said by us.
        os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = options
        self._cv2 = cv2 = opencv()
        cv2.setNumThreads(1)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(OPEN_S * 1000), cv2.CAP_PROP_READ_TIMEOUT_MSEC]
        limits += [int(READ_S * 1000), cv2.CAP_PROP_N_THREADS, 1]
        try:
            self._capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
        except cv2.error as error:
            raise SourceError(f"OpenCV cannot open it: {error.err}") from None
        if not self._capture.isOpened():
            raise SourceError("it cannot be opened as a video: no answer, a refusal, or a format that is not known")
        fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=False)
        self.codec = "".join(chr(byte) for byte in fourcc if 32 < byte < 127)
        self.size = tuple(int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        # A stream of JPEGs is passed on as it is. FORMAT -1 stands for packets instead of decoded frames.
        self.raw = self.codec == "MJPG" and bool(self._capture.set(cv2.CAP_PROP_FORMAT, -1))
        """Frames are passed on as they came."""

    def grab(self) -> bool:
        """Wait for the next frame; False at the end, or when the connection broke."""
        return bool(self._capture.grab())

    def take(self) -> bytes | Callable[[], bytes] | None:
        """The grabbed frame, encoded or to be encoded; None if it is damaged."""
        ok, frame = self._capture.retrieve()
        if not ok or frame is None or not frame.size:
            return None
        return bytes(frame) if self.raw else encoder(frame)

    @property
    def stands_alone(self) -> bool:
        """The grabbed frame was decoded without any other."""
        return int(self._capture.get(self._cv2.CAP_PROP_FRAME_TYPE)) == ord("I")

    @property
    def position_s(self) -> float:
        """Presentation time of the grabbed frame in seconds."""
        return float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000

    def close(self) -> None:
        """Release what FFmpeg holds."""
        self._capture.release()
