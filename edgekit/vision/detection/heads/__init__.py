"""From the output tensors of a detection model to boxes in the pixels of its input, for each usual kind of head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.runtimes.base import ModelError, TensorInfo
from edgekit.vision.detection.heads.base import Candidates, Head, HeadConfig
from edgekit.vision.detection.heads.grid import CenterNet, FastestDet
from edgekit.vision.detection.heads.ssd import Ssd, SsdRaw
from edgekit.vision.detection.heads.yolo import YoloV5, YoloV8, YoloV10, YoloX

__all__ = ["HEADS", "Candidates", "Head", "HeadConfig", "make_head"]

HEADS: dict[str, Callable[[HeadConfig, Sequence[TensorInfo]], Head]] = {
    "yolov8": YoloV8,
    "yolov5": YoloV5,
    "yolox": YoloX,
    "yolov10": YoloV10,
    "ssd": Ssd,
    "ssd_raw": SsdRaw,
    "fastestdet": FastestDet,
    "centernet": CenterNet,
}
"""Name in a package's [detection] -> what reads such outputs."""


def make_head(name: str, config: HeadConfig, tensors: Sequence[TensorInfo]) -> Head:
    """The head of this name for a model with these outputs.

    Raises ModelError if the tensors do not fit it, with what it wants and what the model has.
    """
    if name not in HEADS:
        raise ModelError(f'the head "{name}" is unknown; known are {", ".join(HEADS)}')
    return HEADS[name](config, tensors)
