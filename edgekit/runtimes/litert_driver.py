"""LiteRT (`.tflite`) models on the CPU, by ai-edge-litert or, on old boards with numpy 1, by tflite-runtime."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, SessionOptions, TensorInfo, check_feeds, check_model_file

_LIBRARIES = ("ai_edge_litert", "tflite_runtime")  # both have a module `interpreter` with the same class


def installed() -> bool:
    return any(importlib.util.find_spec(name) is not None for name in _LIBRARIES)


class LiteRtSession:
    """A Session for one `.tflite` file. The interpreter holds one set of tensors, so runs take turns."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        check_model_file(path)
        _check_header(path)
        interpreter_class = _interpreter_class()
        try:
            interpreter = interpreter_class(model_path=str(path), num_threads=options.threads)
            interpreter.allocate_tensors()
        except Exception as error:  # ValueError for a bad file, RuntimeError for an operator it does not know
            raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
        self._lock = threading.Lock()
        self._interpreter: Any = interpreter
        self._indices = [detail["index"] for detail in interpreter.get_input_details()]
        self._inputs = [_info(detail) for detail in interpreter.get_input_details()]
        self._outputs = [_info(detail) for detail in interpreter.get_output_details()]
        self._output_indices = [detail["index"] for detail in interpreter.get_output_details()]
        self._allocated = [tuple(int(n) for n in detail["shape"]) for detail in interpreter.get_input_details()]

    @property
    def inputs(self) -> list[TensorInfo]:
        return self._inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run."""
        check_feeds(self._inputs, feeds)
        arrays = [feeds[tensor.name] for tensor in self._inputs]
        with self._lock:
            if self._interpreter is None:
                raise ModelError("the model was closed")
            try:
                return self._run(arrays)
            except Exception as error:
                raise ModelError(f"the model failed: {_reason(error)}") from error

    def _run(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        shapes = [array.shape for array in arrays]
        if shapes != self._allocated:
            self._allocated = []  # until the new sizes are in place, none is known to be
            for index, shape in zip(self._indices, shapes, strict=True):
                self._interpreter.resize_tensor_input(index, shape, strict=True)
            self._interpreter.allocate_tensors()
            self._allocated = shapes
        for index, array in zip(self._indices, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def close(self) -> None:
        """See Session.close."""
        with self._lock:
            self._interpreter = None


def _interpreter_class() -> Any:
    for name in _LIBRARIES:
        try:
            return importlib.import_module(f"{name}.interpreter").Interpreter
        except ModuleNotFoundError:
            continue
    raise ModelError('LiteRT is not installed; install it with: pip install "edged-cloudd[tflite]"')


def _check_header(path: Path) -> None:
    """TFL3 at byte 4, the flatbuffer identifier, must be there before native code reads the file."""
    with path.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise ModelError(f"{path.name} is not a LiteRT model")


def _info(detail: Mapping[str, Any]) -> TensorInfo:
    signature = detail.get("shape_signature", detail["shape"])
    scales, zero_points = (detail["quantization_parameters"][key] for key in ("scales", "zero_points"))
    # Per-channel scales occur on weights only; an input or output has one scale or none.
    quantisation = (float(scales[0]), int(zero_points[0])) if len(scales) == 1 else None
    shape = tuple(None if size < 0 else int(size) for size in signature)
    return TensorInfo(detail["name"], shape, detail["dtype"].__name__.removesuffix("_"), quantisation)


def _reason(error: Exception) -> str:
    """LiteRT's text on one bounded line, without its pointer to a web page."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("See instructions")]
    return " ".join(" ".join(lines).split())[:500]
