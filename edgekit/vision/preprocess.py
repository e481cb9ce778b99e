"""From a decoded picture to the tensor a model wants, as its package describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, TensorInfo, shape_text
from edgekit.vision import MAX_PIXELS
from edgekit.vision.resample import antialiased
from edgekit.vision.sniff import ImageError

if TYPE_CHECKING:
    from edgekit.packages import InputSpec

LETTERBOX_FILL = 114
"""Grey level of the border that letterbox adds, the convention of the YOLO family."""


def prepare(image: NDArray[np.uint8], spec: InputSpec, tensor: TensorInfo) -> NDArray[Any]:
    """Make a batch of one from `image` (uint8, HxWx3 in the order of `spec.colour`, HxW for grey).

    Each pixel becomes (pixel - mean) * scale per channel. What the model's tensor really is decides the rest, so that
    one description serves variants for several runtimes: a float tensor takes the value; an int8 or uint8 tensor takes
    round(value / tensor scale) + zero point, clipped to its range; without a tensor scale the value itself, rounded.
    The axes follow `spec.layout`, or the other order if only that one fits the tensor's shape. `spec.crop` comes first.

    Raises ModelError if the picture or the tensor does not fit the description.
    """
    channels = _channels(spec)
    if image.dtype != np.uint8 or image.shape[2:] != (() if channels == 1 else (channels,)) or not image.size:
        raise ModelError(f"the picture is {image.dtype.name} {shape_text(image.shape)}, not uint8 in {spec.colour}")
    planar = _is_planar(spec, tensor)
    table = _table(spec, tensor)
    fitted = fit(cropped(image, spec), spec)
    if channels == 1:
        mapped = np.asarray(cv2.LUT(fitted, table[0]))
        return mapped[np.newaxis, np.newaxis] if planar else mapped[np.newaxis, :, :, np.newaxis]
    # One look-up per plane is five times faster than arithmetic on floats: a pixel has only 256 values.
    planes = np.empty((1, channels, *fitted.shape[:2]), table.dtype)
    for plane, values, mapped in zip(cv2.split(fitted), table, planes[0], strict=True):
        cv2.LUT(plane, values, dst=mapped)
    return planes if planar else np.asarray(cv2.merge(planes[0]))[np.newaxis]


def in_colour(pixels: NDArray[Any], spec: InputSpec) -> NDArray[np.uint8]:
    """Raw pixels as `prepare` wants them.

    `pixels` is uint8: HxW or HxWx1 (grey), HxWx3 (red, green, blue) or HxWx4 (with alpha, which is dropped). What they
    are turned into is what `images.decode` makes of a PNG with the same pixels. Raises ImageError for another array, or
    one of more than MAX_PIXELS pixels.
    """
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    if pixels.dtype != np.uint8 or not pixels.size or not (grey or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ImageError(
            f"raw pixels are uint8 with height x width x 1, 3 or 4 channels, not {pixels.dtype.name} "
            f"{shape_text(pixels.shape)}"
        )
    height, width = pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels exceed the limit of {MAX_PIXELS} pixels")
    if grey:
        plane = pixels.reshape(height, width)
        return plane if spec.colour == "grey" else np.repeat(plane[:, :, np.newaxis], 3, axis=2)
    colours = pixels[:, :, :3]
    if spec.colour == "rgb":
        return np.ascontiguousarray(colours)
    code = cv2.COLOR_RGB2GRAY if spec.colour == "grey" else cv2.COLOR_RGB2BGR
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(colours), code), np.uint8)


def reduced_size(spec: InputSpec, share: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int] | None:
    """What `images.decode` may reduce a picture to if the model sees these shares of its width and height.

    None: the package wants every pixel decoded. Decoding at 1/2 or less averages blocks of pixels, as an area resize
    does and the others do not.
    """
    if not spec.reduced:
        return None
    left, top, right, bottom = spec.crop or (0.0, 0.0, 1.0, 1.0)
    return math.ceil(spec.width / (share[0] * (right - left))), math.ceil(spec.height / (share[1] * (bottom - top)))


def check_input(spec: InputSpec, tensor: TensorInfo) -> None:
    """Raise ModelError unless `prepare` can fill `tensor`; done once when a model is loaded."""
    _is_planar(spec, tensor)
    _table(spec, tensor)


def fit(image: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Bring a picture to spec.width x spec.height.

    "stretch" ignores the aspect ratio. "crop" takes the largest centred part with the wanted aspect ratio. "letterbox"
    keeps the whole picture centred on a grey border.
    """
    height, width = image.shape[:2]
    if spec.resize == "crop":
        factor = min(width / spec.width, height / spec.height)
        part_width, part_height = max(1, round(spec.width * factor)), max(1, round(spec.height * factor))
        left, top = (width - part_width) // 2, (height - part_height) // 2
        return _resize(image[top : top + part_height, left : left + part_width], spec.width, spec.height, spec)
    if spec.resize == "letterbox":
        factor = min(spec.width / width, spec.height / height)
        part_width, part_height = max(1, round(width * factor)), max(1, round(height * factor))
        left, top = (spec.width - part_width) // 2, (spec.height - part_height) // 2
        canvas = np.full((spec.height, spec.width, *image.shape[2:]), LETTERBOX_FILL, np.uint8)
        canvas[top : top + part_height, left : left + part_width] = _resize(image, part_width, part_height, spec)
        return canvas
    return _resize(image, spec.width, spec.height, spec)


def cropped(image: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """The part of a picture that the package uses: a view of `image`."""
    if spec.crop is None:
        return image
    height, width = image.shape[:2]
    left, top, right, bottom = fraction_box(spec.crop, width, height)
    return image[top:bottom, left:right]


def fraction_box(fractions: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels; each edge goes to the nearest pixel, and one pixel at least stays."""
    left, right = _span(fractions[0], fractions[2], width)
    top, bottom = _span(fractions[1], fractions[3], height)
    return left, top, right, bottom


def _span(start: float, end: float, size: int) -> tuple[int, int]:
    first = min(int(start * size + 0.5), size - 1)
    return first, min(size, max(first + 1, int(end * size + 0.5)))


def _resize(image: NDArray[np.uint8], width: int, height: int, spec: InputSpec) -> NDArray[np.uint8]:
    if image.shape[1] == width and image.shape[0] == height:
        return image
    if spec.interpolation == "antialias":
        return antialiased(image, width, height)
    # An area resize averages what falls into one pixel; upwards there is nothing to average and it would show blocks.
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    method = cv2.INTER_AREA if spec.interpolation == "area" and shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def _channels(spec: InputSpec) -> int:
    return 1 if spec.colour == "grey" else 3


def _is_planar(spec: InputSpec, tensor: TensorInfo) -> bool:
    """True for NCHW. Raises ModelError if the tensor has neither order of this size."""
    planar = (1, _channels(spec), spec.height, spec.width)
    packed = (1, spec.height, spec.width, _channels(spec))
    preferred, other = (planar, packed) if spec.layout == "nchw" else (packed, planar)
    for shape in (preferred, other):
        if tensor.accepts(shape):
            return shape is planar
    raise ModelError(
        f'the package says the input is {shape_text(preferred)}, but the model\'s "{tensor.name}" is '
        f"{shape_text(tensor.shape)}"
    )


def _table(spec: InputSpec, tensor: TensorInfo) -> NDArray[Any]:
    """The tensor's value for each of the 256 pixel values: shape (channels, 256), in the tensor's type, read-only."""
    return _values(tuple(spec.mean), tuple(spec.scale), _channels(spec), spec.dtype, tensor)


@lru_cache(maxsize=64)  # each time anew, it would take an eighth of a small model's run
def _values(
    mean: tuple[float, ...], scale: tuple[float, ...], channels: int, said: str, tensor: TensorInfo
) -> NDArray[Any]:
    """See `_table`; `said` is the type that the package gives the input."""
    means = np.broadcast_to(np.asarray(mean, np.float64), (channels,))
    scales = np.broadcast_to(np.asarray(scale, np.float64), (channels,))
    values = (np.arange(256, dtype=np.float64) - means[:, np.newaxis]) * scales[:, np.newaxis]
    table = _typed(values, said, tensor)
    table.flags.writeable = False
    return table


def _typed(values: NDArray[np.float64], said: str, tensor: TensorInfo) -> NDArray[Any]:
    if tensor.dtype == "float32":
        return values.astype(np.float32)
    if tensor.dtype not in ("uint8", "int8"):
        raise ModelError(f'the model\'s "{tensor.name}" is {tensor.dtype}; pictures go to float32, uint8 and int8')
    if tensor.quantisation is not None:
        values = values / tensor.quantisation[0] + tensor.quantisation[1]
    elif said != tensor.dtype:
        raise ModelError(
            f'the package says the input is {said}, but the model\'s "{tensor.name}" is {tensor.dtype} '
            "and carries no quantisation scale"
        )
    limits = np.iinfo(tensor.dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(tensor.dtype)
