"""Hailo accelerators by HailoRT's Python API. Untested: written from Hailo's documents, never run on a board.

Source: HailoRT 4.20 user guide, "Python inference tutorial: InferModel" (VDevice, create_infer_model, configure,
create_bindings, run). Tensors have no batch dimension there and pictures are NHWC; the batch of one is added here, and
a package that declares NCHW is turned. The library converts between the network's integers and floats.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import (
    ModelError,
    SessionOptions,
    TensorInfo,
    channels_first,
    check_feeds,
    check_model_file,
    check_options,
)

_TIMEOUT_MS = 10_000


class HailoSession:
    """A Session for one `.hef` file. Runs queue in the device's own scheduler."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        check_model_file(path)
        check_options(options, ())
        try:
            library: Any = importlib.import_module("hailo_platform")
        except ModuleNotFoundError:
            raise ModelError("HailoRT is not installed; install it with its Python package from Hailo") from None
        declared = options.declared
        dtype = "uint8" if declared is not None and declared.dtype == "uint8" else "float32"
        self._turn = declared is not None and channels_first(declared)
        try:
            parameters = library.VDevice.create_params()
            parameters.scheduling_algorithm = library.HailoSchedulingAlgorithm.ROUND_ROBIN
            self._device = library.VDevice(parameters)
            model = self._device.create_infer_model(str(path))
            for stream in model.inputs:
                stream.set_format_type(getattr(library.FormatType, dtype.upper()))
            for stream in model.outputs:
                stream.set_format_type(library.FormatType.FLOAT32)
            self._inputs = [TensorInfo(stream.name, self._shape(stream.shape), dtype) for stream in model.inputs]
            self._outputs = [
                TensorInfo(stream.name, (1, *map(int, stream.shape)), "float32") for stream in model.outputs
            ]
            self._context: Any = model.configure()
            self._model = self._context.__enter__()
        except ModelError:
            raise
        except Exception as error:  # HailoRT's exceptions are one class an error code
            raise ModelError(f"{path.name} cannot be loaded: {type(error).__name__}: {str(error)[:300]}") from error
        self._lock = threading.Lock()

    @property
    def inputs(self) -> list[TensorInfo]:
        return self._inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run."""
        check_feeds(self._inputs, feeds)
        model = self._model
        if model is None:
            raise ModelError("the model was closed")
        try:
            bindings = model.create_bindings()
            for tensor in self._inputs:
                picture = feeds[tensor.name][0]
                picture = picture.transpose(1, 2, 0) if self._turn else picture
                bindings.input(tensor.name).set_buffer(np.ascontiguousarray(picture))
            for tensor in self._outputs:
                bindings.output(tensor.name).set_buffer(np.empty([size or 1 for size in tensor.shape[1:]], np.float32))
            model.run([bindings], _TIMEOUT_MS)
            return [np.asarray(bindings.output(tensor.name).get_buffer())[None] for tensor in self._outputs]
        except Exception as error:
            raise ModelError(f"the model failed: {type(error).__name__}: {str(error)[:300]}") from error

    def close(self) -> None:
        """See Session.close."""
        with self._lock:
            if self._model is None:
                return
            self._model = None
        self._context.__exit__(None, None, None)
        self._device.release()

    def _shape(self, shape: Any) -> tuple[int, ...]:
        sizes = tuple(int(size) for size in shape)
        return (1, sizes[2], sizes[0], sizes[1]) if self._turn and len(sizes) == 3 else (1, *sizes)
