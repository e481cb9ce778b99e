"""What a request to a model is checked against, worked out once when the model is loaded. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edged.serve.oip.datatypes import DATATYPES
from edgekit.runtimes.base import TensorInfo

MAX_RANK = 8
PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "litert": "litert_tflite",
    "rknnlite": "rknnlite_rknn",
    "hailort": "hailort_hef",
}


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model."""

    name: str
    info: TensorInfo
    datatype: str  # the protocol's name
    dtype: np.dtype[np.generic]
    wire_dtype: np.dtype[np.generic]  # little endian
    shape: list[int]  # as the protocol writes it: -1 where any size is allowed
    picture: bool = False  # pictures and pixels may stand for it

    @property
    def text(self) -> str:
        """numpy's name of the type, for sentences; objects are text there."""
        return "text" if self.datatype == "BYTES" else self.info.dtype


def port_of(info: TensorInfo, picture: bool = False) -> Port:
    """A tensor of a session, as the protocol sees it."""
    datatype = DATATYPES.get(info.dtype, info.dtype.upper())
    dtype = np.dtype(info.dtype)
    return Port(info.name, info, datatype, dtype, dtype.newbyteorder("<"), wire_shape(info), picture)


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's name, inputs and outputs; `strict`: NaN and infinity may not come out of it."""

    model: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    strict: bool = True
    labels: dict[str, Sequence[str]] = field(default_factory=dict)  # by output, where its last axis has one per label
    remembered: dict[tuple[bytes, int], Any] = field(default_factory=dict, compare=False)
    """For `read_request`: headers that it has read before."""
    batched: bool = False  # the first dimension of every tensor is free: it counts requests in one


def signature(
    model: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    picture_input: str = "",
    labels: Sequence[str] = (),
    strict: bool = True,
) -> Signature:
    """`picture_input` is the input that takes pictures, "" for none."""
    tensors = [*inputs, *outputs]
    batched = bool(tensors) and all(tensor.shape and tensor.shape[0] is None for tensor in tensors)
    labelled = {
        tensor.name: labels
        for tensor in outputs
        if labels and tensor.shape and math.prod(size or 1 for size in tensor.shape[1:]) in (len(labels), 1)
    }
    return Signature(
        model,
        {tensor.name: port_of(tensor, tensor.name == picture_input) for tensor in inputs},
        {tensor.name: port_of(tensor) for tensor in outputs},
        strict,
        labelled,
        batched=batched,
    )


def wire_shape(tensor: TensorInfo) -> list[int]:
    """A shape as the protocol writes it: -1 where any size is allowed."""
    return [-1 if size is None else size for size in tensor.shape]


def shape_text(shape: Sequence[int]) -> str:
    """[1,3,64,64], cut after a few numbers."""
    return "[" + ",".join(str(size) for size in shape[: MAX_RANK + 1]) + "]"
