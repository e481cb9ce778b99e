"""The tables of package.toml that belong to detection: which head a model has, and how a golden picture is compared."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Head = Literal["yolov8", "yolov5", "yolox", "yolov10", "ssd", "ssd_raw", "fastestdet", "centernet", "template"]
"""How output tensors become boxes; see `edgekit.vision.detection.heads` for what each one reads."""

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]


class DetectionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[detection]`: how a model's output becomes boxes.

    `outputs` names the output tensors in the head's order; without it they are told apart by their shapes. `scores` and
    `unit` are by default what the head's usual exports give. Candidates from `score_floor` on are kept, so that the
    doubtful ones can be asked about; `report` is the score from which a box is reported.
    """

    head: Head
    outputs: list[str] = []
    scores: Literal["probabilities", "logits"] | None = None
    unit: Literal["pixel", "fraction"] | None = None  # of boxes: pixels of the model's input, or fractions of its sides
    strides: list[int] = []  # pixels of the input for each cell of a grid: yolox, fastestdet, centernet
    priors: str = ""  # ssd_raw: safetensors file, "priors" [N, 4], centre x, y, width, height as fractions of the input
    variances: list[float] = []  # ssd_raw: of centre and size, usually 0.1 and 0.2
    score_floor: Annotated[float, Meta(ge=0.001, lt=1.0)] = 0.05
    report: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    nms_iou: Fraction | None = None  # IoU above which the weaker box goes, 1.0: never; None: as the head needs it
    class_agnostic: bool = False  # suppression across labels too
    max_candidates: Annotated[int, Meta(ge=1, le=10_000)] = 1000  # the best ones that suppression looks at
    max_detections: Annotated[int, Meta(ge=1, le=10_000)] = 300  # of one picture


class TemplateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[template]`: how a picture is compared with the golden one. Pixels are those of the model's input.

    The first label of the package is for material that is missing, the second for material too much. A difference is
    scored by its area and contrast: one of full contrast and `area` pixels gets 0.5.
    """

    material: Literal["bright", "dark"] = "bright"  # what is bright or dark in the golden picture is material
    # The work grows with the square of tolerance and of join, which their bounds keep in hand.
    tolerance: Annotated[int, Meta(ge=0, le=16)] = 2  # edges may lie so many pixels away
    contrast: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5  # share of the golden contrast from which a pixel differs
    area: Annotated[float, Meta(gt=0.0, le=1e6)] = 12.0  # pixels
    join: Annotated[int, Meta(ge=0, le=32)] = 4  # differences less than so many pixels apart are one
    grow: Annotated[int, Meta(ge=0, le=256)] = 0  # added on each side of a box
    max_shift: Annotated[float, Meta(ge=0.0, le=256.0)] = 16.0  # pixels that a picture may lie aside
    max_rotation: Annotated[float, Meta(ge=0.0, le=5.0)] = 3.0  # degrees
    max_scale: Annotated[float, Meta(ge=0.0, le=0.1)] = 0.03  # that it may be larger or smaller, as a share


_NETWORKS = ("yolov8", "yolov5", "yolox", "yolov10", "ssd", "ssd_raw", "fastestdet", "centernet")
_KEYS = {
    "outputs": _NETWORKS,
    "scores": tuple(head for head in _NETWORKS if head != "yolov10"),
    "unit": ("yolov8", "yolov5", "yolov10", "ssd"),
    "strides": ("yolox", "fastestdet", "centernet"),
    "priors": ("ssd_raw",),
    "variances": ("ssd_raw",),
}
"""Which heads have a key. Another head's key is an error: ignoring it would change what its author meant."""


def fault(spec: DetectionSpec, template: TemplateSpec | None, colour: str, runtimes: list[str]) -> str:
    """What is wrong with a detection package beyond single values, as a sentence; "" if nothing is."""
    for key, heads in _KEYS.items():
        if getattr(spec, key) and spec.head not in heads:
            only = f'head = "{heads[0]}"' if len(heads) == 1 else f"the heads {', '.join(heads)}"
            return f'"detection.{key}" is set; it belongs to {only}, not to "{spec.head}"'
    if spec.head == "ssd_raw" and not spec.priors:
        return '"detection.priors" is missing; ssd_raw needs the file of its priors'
    if any(not 1 <= stride <= 1024 for stride in spec.strides) or len(spec.strides) > 8:
        return f'"detection.strides" is {spec.strides}; up to 8 whole numbers from 1 to 1024 belong there'
    if spec.head in ("fastestdet", "centernet") and len(spec.strides) > 1:
        return f'"detection.strides" has several numbers; {spec.head} has one grid'
    if spec.variances and not (len(spec.variances) == 2 and all(0 < value <= 10 for value in spec.variances)):
        return f'"detection.variances" is {spec.variances}; two numbers above 0, of centre and size, belong there'
    if spec.report < spec.score_floor:
        return (
            f'"detection.report" is {spec.report}, below "detection.score_floor" ({spec.score_floor}): '
            "what is reported must be kept"
        )
    return _template_fault(spec, template, colour, runtimes)


def _template_fault(spec: DetectionSpec, template: TemplateSpec | None, colour: str, runtimes: list[str]) -> str:
    is_template = spec.head == "template"
    for index, runtime in enumerate(runtimes):
        if (runtime == "template") != is_template:
            return (
                f'"variants[{index}].runtime" is "{runtime}" and "detection.head" is "{spec.head}"; '
                'a golden picture has "template" in both, and a model in neither'
            )
    if template is not None and not is_template:
        return f'[template] belongs to detection.head = "template", not to "{spec.head}"'
    if is_template and colour != "grey":
        return f'"input.colour" is "{colour}"; golden pictures are compared in "grey"'
    return ""


def box_fault(box: list[float]) -> str:
    """What is wrong with a sample's box: four numbers, left < right and top < bottom; "" if nothing is."""
    if len(box) == 4 and 0 <= box[0] < box[2] < math.inf and 0 <= box[1] < box[3] < math.inf:
        return ""
    return f"is {box}; left, top, right and bottom in pixels belong there, with left < right and top < bottom"
