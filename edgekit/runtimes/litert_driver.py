"""LiteRT (`.tflite`) models by ai-edge-litert or, on old boards with numpy 1, by tflite-runtime.

On the CPU (XNNPACK), or on a Coral Edge TPU through its delegate, which is written from Google's documents and is
untested. A model compiled for the Edge TPU holds a custom operator that only the delegate knows, so it cannot fall back
to the CPU in silence.
"""

from __future__ import annotations

import ctypes
import importlib
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, SessionOptions, TensorInfo, check_feeds, check_model_file, check_options

_DELEGATES: dict[str, tuple[str, frozenset[str]]] = {
    "edgetpu": ("libedgetpu.so.1", frozenset(("device",))),  # https://coral.ai/docs/edgetpu/tflite-python
}
"""Provider -> library of its delegate and the options it takes."""
_LIBRARIES = ("ai_edge_litert", "tflite_runtime")  # both have a module `interpreter` with the same class


class LiteRtSession:
    """A Session for one `.tflite` file. An interpreter runs one picture at a time; `options.contexts` of them are made
    as they are needed, so that many runs may go on at once."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        check_model_file(path)
        _check_header(path)
        self._make = _maker(path, options)
        self._lock = threading.Lock()
        self._left = options.contexts - 1
        first = _Interpreter(self._make())
        self._free: queue.LifoQueue[_Interpreter | None] = queue.LifoQueue()
        self._free.put(first)
        self._inputs = first.inputs
        self._outputs = first.outputs

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
        interpreter = self._take()
        try:
            if interpreter is None:
                raise ModelError("the model was closed")
            return interpreter.run(arrays)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model failed: {_reason(error)}") from error
        finally:
            self._free.put(interpreter)

    def _take(self) -> _Interpreter | None:
        """A free interpreter, a new one while there may be more, or the next that comes back. None once closed."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            with self._lock:
                more = self._left > 0
                self._left -= more
            return _Interpreter(self._make()) if more else self._free.get()

    def close(self) -> None:
        """See Session.close."""
        with self._lock:
            self._left = 0
        while True:  # the mark goes on top, for every run that comes later
            try:
                self._free.get_nowait()
            except queue.Empty:
                break
        self._free.put(None)


class _Interpreter:
    """One interpreter with its tensors. Not safe for two threads."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        details = interpreter.get_input_details()
        results = interpreter.get_output_details()
        self.inputs = [_info(detail) for detail in details]
        self.outputs = [_info(detail) for detail in results]
        self._indices = [detail["index"] for detail in details]
        self._output_indices = [detail["index"] for detail in results]
        self._allocated = [tuple(int(n) for n in detail["shape"]) for detail in details]

    def run(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
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


def _maker(path: Path, options: SessionOptions) -> Callable[[], Any]:
    """What makes an allocated interpreter; raises ModelError as the constructor of a session does."""
    library = _library()
    known = _DELEGATES.get(options.provider)
    if known is None and options.provider != "cpu":
        raise ModelError(f'LiteRT has no provider "{options.provider}"; known are cpu, {", ".join(_DELEGATES)}')
    check_options(options, known[1] if known else ())
    if known:
        try:  # here, because load_delegate leaves a broken object behind when the library is missing
            ctypes.CDLL(known[0])
        except OSError as error:
            raise ModelError(f'the library of the provider "{options.provider}" cannot be loaded: {error}') from error

    def make() -> Any:
        try:
            delegates = [library.load_delegate(known[0], dict(options.provider_options))] if known else None
            interpreter = library.Interpreter(
                model_path=str(path), num_threads=options.threads, experimental_delegates=delegates
            )
            interpreter.allocate_tensors()
        except Exception as error:  # ValueError for a bad file, RuntimeError for an operator it does not know
            raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
        return interpreter

    return make


def _library() -> Any:
    for name in _LIBRARIES:
        try:
            return importlib.import_module(f"{name}.interpreter")
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
