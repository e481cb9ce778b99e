"""What the peers' models share, as edged has it: the same runtime with the same settings, the same way from a JPEG.

Runs in a peer's own interpreter, which knows nothing of this repository. SERVING_MODELS: the folder of NAME.onnx.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

SIDES = {"tiny64": 64, "mnv2": 224}
_SCALE = np.float32(1 / 255)

cv2.setNumThreads(1)


def open_session(name: str) -> Any:
    """One thread a run, no spinning."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = Path(os.environ["SERVING_MODELS"]) / f"{name}.onnx"
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


class Preparation:
    """JPEG to float32 (1, 3, side, side), RGB in 0..1, in one array that is used again and again.

    Both peers run one request after the other in a process.
    """

    def __init__(self, side: int) -> None:
        self._side = side
        self._values = np.empty((1, 3, side, side), np.float32)

    def __call__(self, data: bytes) -> Any:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels.shape[:2] != (self._side, self._side):
            pixels = cv2.resize(pixels, (self._side, self._side), interpolation=cv2.INTER_AREA)
        for plane, target in zip(cv2.split(pixels), self._values[0], strict=True):
            np.multiply(plane, _SCALE, out=target)
        return self._values
