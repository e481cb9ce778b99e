"""ONNX models by onnxruntime, on the CPU or by one of its execution providers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, SessionOptions, TensorInfo, check_feeds, check_model_file
from edgekit.runtimes.onnx_providers import PROVIDERS, attach
from edgekit.runtimes.onnx_reader import OnnxReferences, read_references

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

try:
    import onnxruntime
except ImportError:  # the extra is not installed; `installed` says so and a session explains it
    onnxruntime = None

DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Operator domains that come with onnxruntime. A library of custom operators is native code; none is ever loaded."""

SPIN_US = 1000
"""Microseconds that an idle thread spins before it sleeps; longer than any gap within a run."""

_FITTING = 64
"""Shapes of a lone input that are remembered."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxSession:
    """A Session for one `.onnx` file. onnxruntime's own run is thread-safe."""

    def __init__(self, path: Path, options: SessionOptions, files: frozenset[str]) -> None:
        if onnxruntime is None:
            raise ModelError('onnxruntime is not installed; install it with: pip install "edged-cloudd[serve]"')
        check_model_file(path)
        references = read_references(path)
        _check_domains(references)
        _check_external(path, references, files)
        settings = _settings(options)
        try:
            providers = attach(onnxruntime, settings, options)
            # Loaded by path, never from bytes: a model from bytes may read any file below the working directory.
            session = onnxruntime.InferenceSession(str(path), settings, providers=providers or None)
            # Weights that old exporters list as graph inputs are "overridable initializers" to onnxruntime, no inputs.
            self._inputs = [_info(node) for node in session.get_inputs()]  # a name that is no UTF-8 raises here
            self._outputs = [_info(node) for node in session.get_outputs()]
        except ModelError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
        if options.provider != "cpu" and PROVIDERS[options.provider].execution not in session.get_providers():
            raise ModelError(f'onnxruntime did not take the provider "{options.provider}" and fell back to the CPU')
        self.placement = _placement(session) if options.strict else {}
        self._session: Any = session
        self._names = [tensor.name for tensor in self._outputs]
        self._fitting: set[tuple[str, Any, tuple[int, ...]]] = set()

    @property
    def inputs(self) -> list[TensorInfo]:
        return self._inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run."""
        session = self._session
        if session is None:
            raise ModelError("the model was closed")
        self._check(feeds)
        try:
            results: list[NDArray[Any]] = session.run(self._names, feeds)
        except Exception as error:
            raise ModelError(f"the model failed: {_reason(error)}") from error
        return results

    def _check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """`check_feeds`, remembering which lone inputs fitted."""
        key = None
        if len(feeds) == 1 == len(self._inputs):
            ((name, array),) = feeds.items()
            key = (name, array.dtype, array.shape)
            if key in self._fitting:
                return
        check_feeds(self._inputs, feeds)
        if key is not None and len(self._fitting) < _FITTING:
            self._fitting.add(key)

    def close(self) -> None:
        """See Session.close."""
        self._session = None


def _settings(options: SessionOptions) -> Any:
    settings = onnxruntime.SessionOptions()
    # Never left to onnxruntime: its default ignores the CPUs that this process may use.
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = options.arena
    settings.log_severity_level = 4  # what matters arrives as exceptions
    entries = {
        "session.intra_op.allow_spinning": "1" if options.spinning else "0",
        # What was walked is what is loaded: by default the name decides, and `x.ort` is read as another format.
        "session.load_model_format": "ONNX",
    }
    if options.spinning:
        # onnxruntime itself spins for 3 to 500 ms, by the kind of CPU: a whole core between two pictures of a camera.
        entries["session.intra_op.spin_duration_us"] = str(SPIN_US)
    if options.strict:
        entries["session.record_ep_graph_assignment_info"] = "1"
        if options.provider != "cpu":
            entries["session.disable_cpu_ep_fallback"] = "1"
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return settings


def _placement(session: Any) -> dict[str, int]:
    """Provider -> operators, from onnxruntime's own record; empty with a version that keeps none."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    counts: Counter[str] = Counter()
    for part in ask() if ask is not None else []:
        counts[part.ep_name] += max(1, len(part.get_nodes()))
    return dict(counts)


def _check_domains(references: OnnxReferences) -> None:
    for domain, operator in sorted(references.operators):
        if domain not in DOMAINS and (domain, operator) not in references.functions:
            raise ModelError(
                f'the model needs the operator "{operator}" of the domain "{domain}", which is not built in'
            )


def _check_external(path: Path, references: OnnxReferences, files: frozenset[str]) -> None:
    """External data may only be a listed, regular file in or below the model's own folder, reached by no symlink."""
    for location in sorted(references.external):
        parts = PurePosixPath(location).parts
        if not parts or location.startswith("/") or "\\" in location or "\0" in location or ".." in parts:
            raise ModelError(f"the model wants to read data from outside its folder ({location[:200]!r})")
        normal = "/".join(parts)
        if normal not in files:
            raise ModelError(f"the model wants to read {normal[:200]!r}, which its package does not list beside it")
        here = path.parent
        for part in parts:
            here = here / part
            if here.is_symlink():
                raise ModelError(f"the model wants to read {normal[:200]!r} through a symbolic link")
        check_model_file(here)


def _info(node: Any) -> TensorInfo:
    dtype = _DTYPES.get(node.type, "object" if node.type == "tensor(string)" else "")
    if not dtype:
        raise ModelError(f'the model\'s "{node.name}" is a {node.type}; only plain tensors are supported')
    return TensorInfo(node.name, tuple(size if isinstance(size, int) else None for size in node.shape), dtype)


def _reason(error: Exception) -> str:
    """onnxruntime's text without its "[ONNXRuntimeError] : 10 : INVALID_GRAPH : " prefix, on one bounded line."""
    text = str(error)
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return " ".join(text.split())[:500]
