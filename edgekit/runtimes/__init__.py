"""One interface to every inference runtime: open a model file by path, see its tensors, run it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgekit.runtimes.base import ModelError, Session, SessionOptions, TensorInfo

__all__ = ["ModelError", "Session", "SessionOptions", "TensorInfo", "installed", "open_session"]


def installed(runtime: str) -> bool:
    """Whether the library behind `runtime` ("onnxruntime" or "litert") can be imported here; imports nothing."""
    if runtime == "onnxruntime":
        from edgekit.runtimes import onnxruntime_driver

        return onnxruntime_driver.installed()
    if runtime == "litert":
        from edgekit.runtimes import litert_driver

        return litert_driver.installed()
    return False


def open_session(
    path: Path,
    runtime: str,
    options: SessionOptions | None = None,
    files: Collection[str] | None = None,
) -> Session:
    """Load the model file at `path` with `runtime` ("onnxruntime" or "litert").

    `files` names the files beside the model that it may read external data from, relative to the model's own folder
    and with forward slashes. Without it the model must be one self-contained file. Raises ModelError with a sentence:
    unknown runtime, library not installed, not a model, unknown operator or domain, external data not listed. A
    runtime that crashes natively takes the process with it; that is why models are loaded in a worker.
    """
    chosen = options or SessionOptions()
    listed = frozenset(files or ())
    if runtime == "onnxruntime":
        from edgekit.runtimes import onnxruntime_driver

        return onnxruntime_driver.OnnxSession(path, chosen, listed)
    if runtime == "litert":
        from edgekit.runtimes import litert_driver

        return litert_driver.LiteRtSession(path, chosen)
    raise ModelError(f'the runtime "{runtime}" is unknown; "onnxruntime" and "litert" are known')
