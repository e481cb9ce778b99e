"""One interface to every inference runtime: open a model file by path, see its tensors, run it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgekit.runtimes.base import ModelError, Session, SessionOptions, TensorInfo, placement
from edgekit.runtimes.libraries import installed, installed_roads, version

__all__ = [
    "RUNTIMES",
    "ModelError",
    "Session",
    "SessionOptions",
    "TensorInfo",
    "installed",
    "installed_roads",
    "open_session",
    "placement",
    "version",
]

RUNTIMES = ("onnxruntime", "litert", "rknnlite", "hailort")
"""What a package's variants may name. "fake" is there too, for tests only."""


def open_session(
    path: Path,
    runtime: str,
    options: SessionOptions | None = None,
    files: Collection[str] | None = None,
) -> Session:
    """Load the model file at `path` with one of RUNTIMES.

    `files` names the files beside the model that it may read external data from, relative to the model's own folder
    and with forward slashes. Without it the model must be one self-contained file. With `options.interpreter` the
    driver runs in a process of its own under that Python. Raises ModelError with a sentence: unknown runtime, library
    not installed, not a model, unknown operator or domain, external data not listed. A runtime that crashes natively
    takes its process with it; that is why models are loaded in a worker, and vendors' libraries apart from it.
    """
    chosen = options or SessionOptions()
    listed = frozenset(files or ())
    if chosen.interpreter:
        from edgekit.runtimes import remote_driver

        return remote_driver.RemoteSession(path, runtime, chosen, listed)
    if runtime == "onnxruntime":
        from edgekit.runtimes import onnxruntime_driver

        return onnxruntime_driver.OnnxSession(path, chosen, listed)
    if runtime == "litert":
        from edgekit.runtimes import litert_driver

        return litert_driver.LiteRtSession(path, chosen)
    if runtime == "rknnlite":
        from edgekit.runtimes import rknnlite_driver

        return rknnlite_driver.RknnSession(path, chosen)
    if runtime == "hailort":
        from edgekit.runtimes import hailort_driver

        return hailort_driver.HailoSession(path, chosen)
    if runtime == "fake":
        from edgekit.runtimes import fake_driver

        return fake_driver.FakeSession(path, chosen)
    raise ModelError(f'the runtime "{runtime}" is unknown; known are {", ".join(RUNTIMES)}')
