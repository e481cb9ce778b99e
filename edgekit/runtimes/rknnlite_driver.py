"""Rockchip's NPU by RKNN-Toolkit-Lite2. Untested: written from Rockchip's documents, never run on a board.

Source: rknn-toolkit2 2.3.2, "RKNN-Toolkit-Lite2 API reference" (load_rknn, init_runtime, inference, release). Calls
return 0 for success. That API tells no shapes: the input is what the package declares, the outputs are what a first run
on a blank picture gives. The library converts: pixels or floats in, floats out.
"""

from __future__ import annotations

import importlib
import queue
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

_CORE_MASKS = {
    "auto": "NPU_CORE_AUTO",
    "all": "NPU_CORE_ALL",
    **{name: f"NPU_CORE_{name}" for name in ("0", "1", "2", "0_1", "0_1_2")},
}


class RknnSession:
    """A Session for one `.rknn` file. A context runs one picture at a time; there are `options.contexts` of them."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        check_model_file(path)
        check_options(options, ("core_mask",))
        mask = options.provider_options.get("core_mask", "auto")
        if mask not in _CORE_MASKS:
            raise ModelError(f'the core mask "{mask[:20]}" is unknown; known are {", ".join(_CORE_MASKS)}')
        if options.declared is None or None in options.declared.shape:
            raise ModelError(f"{path.name} needs a package that declares its input; rknnlite cannot tell it")
        try:
            library: Any = importlib.import_module("rknnlite.api").RKNNLite
        except ModuleNotFoundError:
            raise ModelError("rknnlite is not installed; install rknn_toolkit_lite2 from Rockchip") from None
        # Chips with one core have a library without masks.
        core = getattr(library, _CORE_MASKS[mask], None)
        self._inputs = [options.declared]
        self._format = ["nchw" if channels_first(options.declared) else "nhwc"]
        self._contexts: list[Any] = []
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(options.contexts):
            context = library()
            self._contexts.append(context)
            _check(context.load_rknn(str(path)), f"{path.name} cannot be loaded")
            _check(context.init_runtime(**({} if core is None else {"core_mask": core})), "the NPU cannot be started")
            self._free.put(context)
        blank = np.zeros([size or 1 for size in options.declared.shape], options.declared.dtype)
        results = self.run({options.declared.name: blank})
        self._outputs = [
            TensorInfo(f"output{index}", result.shape, result.dtype.name) for index, result in enumerate(results)
        ]

    @property
    def inputs(self) -> list[TensorInfo]:
        return self._inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run."""
        check_feeds(self._inputs, feeds)
        context = self._free.get()
        try:
            if context is None:
                raise ModelError("the model was closed")
            results = context.inference(inputs=[feeds[self._inputs[0].name]], data_format=self._format)
        finally:
            self._free.put(context)
        if results is None:
            raise ModelError("the model failed on the NPU; the kernel's log (dmesg) says more")
        return [np.asarray(result) for result in results]

    def close(self) -> None:
        """See Session.close."""
        for context in self._contexts:
            self._free.get()  # waits for a run that is going on
            context.release()
        self._contexts = []
        self._free.put(None)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise ModelError(f"{what}: its library says {result}")
