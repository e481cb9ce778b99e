"""How a picture becomes the model's input: read from the file where it says so, asked where it does not."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloudd.importing.errors import ImportRefused
from edgekit import toml
from edgekit.packages import DetectionSpec, InputSpec, OutputSpec
from edgekit.runtimes import TensorInfo
from edgekit.runtimes.base import shape_text


@dataclass(frozen=True)
class Convention:
    """One usual way to make values of pixels: value = (pixel - mean) * scale, per channel in the order of `colour`."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    colour: str  # "": any
    about: str


CONVENTIONS: dict[str, Convention] = {
    "unit": Convention((0.0,), (1 / 255,), "", "0 to 1: torchvision's ToTensor, YOLO, Keras with Rescaling(1/255)"),
    "signed": Convention((127.5,), (1 / 127.5,), "", "-1 to 1: TensorFlow's MobileNet, Inception, EfficientNet-Lite"),
    "bytes": Convention((0.0,), (1.0,), "", "0 to 255: models that normalise by themselves"),
    "imagenet": Convention(
        (123.675, 116.28, 103.53),
        (1 / 58.395, 1 / 57.12, 1 / 57.375),
        "rgb",
        "0 to 1, less the mean of ImageNet, by its deviation: torchvision's models, timm",
    ),
    "caffe": Convention((103.939, 116.779, 123.68), (1.0,), "bgr", "0 to 255 less the mean: Caffe, Keras' ResNet, VGG"),
}
"""Name for `--normalise`."""

Wishes = Mapping[str, Any]
"""Keys of one table of package.toml, as the user said them."""


def read_wishes(pairs: Sequence[str], table: type[msgspec.Struct], option: str) -> dict[str, Any]:
    """`KEY=VALUE`, as package.toml has them but without quotes; 1,2,3 is a list. Raises ImportRefused."""
    lists = {one.encode_name for one in msgspec.structs.fields(table) if "list" in str(one.type)}
    known = [one.encode_name for one in msgspec.structs.fields(table)]
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in known:
            raise ImportRefused(f"{option} {toml.show(pair)}: write KEY=VALUE; the keys are {', '.join(known)}")
        value = _value(text)
        found[key] = [value] if key in lists and not isinstance(value, list) else value
    return found


def _value(text: str) -> Any:
    for attempt in (text, f"[{text}]"):
        try:
            value = tomllib.loads(f"v = {attempt}")
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
        if value.keys() == {"v"}:
            return value["v"]
    return text.split(",") if "," in text else text


@dataclass(frozen=True)
class Described:
    """The input's description, and where each part of it came from: "read", "said" or "assumed"."""

    spec: InputSpec
    origin: Mapping[str, str]
    normalised: bool  # False: nobody says how pixels become values


def describe(tensor: TensorInfo, wishes: Wishes, normalise: str) -> Described:
    """Describe the input `tensor` of a model. `normalise`: a name of CONVENTIONS, or "".

    Raises ImportRefused for a tensor that no picture fits, and for wishes that contradict each other.
    """
    found: dict[str, Any] = _read(tensor)
    origin = dict.fromkeys(found, "read")
    quantised = tensor.quantisation is not None and tensor.dtype in ("uint8", "int8")
    if quantised and tensor.quantisation is not None:
        scale, zero = tensor.quantisation
        lowest = 0 if tensor.dtype == "uint8" else -128
        found |= {"mean": [float(zero - lowest)], "scale": [scale]}
        origin |= {"mean": "read", "scale": "read"}
    elif tensor.dtype == "uint8":
        found |= {"mean": [0.0], "scale": [1.0]}
        origin |= {"mean": "read", "scale": "read"}
    if normalise:
        if "mean" in wishes or "scale" in wishes:
            raise ImportRefused("--normalise says mean and scale already; leave them out of --input")
        wanted = CONVENTIONS[normalise]
        colour = wishes.get("colour", found["colour"])
        if wanted.colour and colour == "grey":
            raise ImportRefused(f"--normalise {normalise} is for pictures in colour; this model takes grey ones")
        told: dict[str, Any] = {"mean": list(wanted.mean), "scale": list(wanted.scale)}
        if wanted.colour and "colour" not in wishes:
            told["colour"] = wanted.colour
        found |= told
        origin |= dict.fromkeys(told, "said")
    for key, value in (("colour", "rgb"), ("resize", "stretch"), ("interpolation", "antialias")):
        origin.setdefault(key, "assumed")
        found.setdefault(key, value)
    if found["colour"] == "rgb" and origin["colour"] == "read":
        origin["colour"] = "assumed"  # three channels are read, their order is not
    found |= wishes
    origin |= dict.fromkeys(wishes, "said")
    normalised = "mean" in origin or "scale" in origin
    return Described(_convert(found, InputSpec, "--input"), origin, normalised)


def _read(tensor: TensorInfo) -> dict[str, Any]:
    shape = tensor.shape
    if len(shape) != 4 or shape[0] not in (None, 1):
        raise ImportRefused(
            f'the model\'s input "{tensor.name}" is {shape_text(shape)}; one picture has the shape 1xCxHxW or 1xHxWxC'
        )
    if tensor.dtype not in ("float32", "uint8", "int8"):
        raise ImportRefused(
            f'the model\'s input "{tensor.name}" is {tensor.dtype}; pictures go to float32, uint8 and int8. '
            "Export it with a float32 input"
        )
    planar = shape[1] in (1, 3) or shape[3] not in (1, 3)
    channels, height, width = (shape[1], shape[2], shape[3]) if planar else (shape[3], shape[1], shape[2])
    if channels not in (1, 3):
        raise ImportRefused(f'the model\'s input "{tensor.name}" is {shape_text(shape)}, without 1 or 3 channels')
    found: dict[str, Any] = {
        "layout": "nchw" if planar else "nhwc",
        "colour": "grey" if channels == 1 else "rgb",
        "dtype": tensor.dtype,
    }
    for key, side in (("width", width), ("height", height)):
        if side is not None:
            found[key] = side
    return found


def detection_spec(wishes: Wishes, metadata: Mapping[str, str]) -> DetectionSpec:
    """`[detection]` as the user said it; the head of Ultralytics' exports is read. Raises ImportRefused."""
    found = dict(wishes)
    if "head" not in found and metadata.get("task") == "detect" and "Ultralytics" in metadata.get("author", ""):
        found["head"] = "yolov10" if "v10" in metadata.get("description", "") else "yolov8"
    if "head" not in found:
        raise ImportRefused(
            "the file does not say how its outputs become boxes; say --detection head=NAME "
            "(yolov8, yolov5, yolox, yolov10, ssd, ssd_raw, fastestdet, centernet: docs/model-package.md)"
        )
    spec: DetectionSpec = _convert(found, DetectionSpec, "--detection")
    return spec


def output_spec(table: Wishes) -> OutputSpec:
    """`[output]`. Raises ImportRefused."""
    found: OutputSpec = _convert(table, OutputSpec, "--output")
    return found


def answer_kind(rows: NDArray[Any], output: TensorInfo) -> str:
    """Whether values [n, labels] that a model gave for noise are "logits" or "probabilities".

    Raises ImportRefused for a yes or no of its own for each label.
    """
    if output.quantisation is not None:
        scale, zero = output.quantisation
        limits = np.iinfo(np.dtype(output.dtype))
        low, high = (limits.min - zero) * scale, (limits.max - zero) * scale
        return "probabilities" if low >= -0.01 and 0.9 <= high <= 1.01 else "logits"
    if not np.isfinite(rows).all() or rows.min() < -1e-4 or rows.max() > 1 + 1e-4:
        return "logits"
    if np.abs(rows.sum(axis=1) - 1).max() < 1e-2:
        return "probabilities"
    raise ImportRefused(
        "each label seems to have a yes or no of its own (values from 0 to 1 that do not sum to 1, as of a Sigmoid); a "
        "classifier says one of its labels. Export the model with a softmax or without a last activation; if these are "
        "logits, say --output kind=logits"
    )


def _convert(table: Mapping[str, Any], struct: type[msgspec.Struct], option: str) -> Any:
    try:
        return toml.convert(dict(table), struct)
    except toml.TomlError as error:
        raise ImportRefused(error.at(option)) from None


def conventions_text(channels: int) -> str:
    """What may be said as `--normalise`, one a line."""
    return "\n".join(f"  {name:9} {one.about}" for name, one in CONVENTIONS.items() if channels == 3 or not one.colour)
