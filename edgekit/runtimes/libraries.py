"""Which runtimes and providers are installed in this environment, found without importing any of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Road:
    """One way of running models: a runtime and the part of it that does the work.

    `distributions`: packages whose version says what runs, the first one installed counts.
    `tested`: whether it ran on hardware that has it. The others are written from the vendors' documents.
    """

    runtime: str
    provider: str
    modules: tuple[str, ...]  # one of them must be importable
    distributions: tuple[str, ...]
    plugin: str = ""  # module of a provider that is a package of its own
    library: str = ""  # file name of a provider inside onnxruntime's own package
    tested: bool = False


_ORT = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-cann", "onnxruntime-migraphx")


def _onnx(provider: str, distributions: tuple[str, ...] = _ORT, *, plugin: str = "", tested: bool = False) -> Road:
    library = "" if provider == "cpu" else f"libonnxruntime_providers_{provider}.so"
    return Road("onnxruntime", provider, ("onnxruntime",), distributions, plugin, library, tested)


ROADS: tuple[Road, ...] = (
    _onnx("cpu", tested=True),
    _onnx(
        "openvino", ("onnxruntime-ep-openvino", "onnxruntime-openvino"), plugin="onnxruntime_ep_openvino", tested=True
    ),
    _onnx("cuda"),
    _onnx("tensorrt"),
    _onnx("migraphx"),
    _onnx("qnn", ("onnxruntime-qnn",), plugin="onnxruntime_qnn"),
    _onnx("cann"),
    _onnx("vitisai"),
    Road("litert", "cpu", ("ai_edge_litert", "tflite_runtime"), ("ai-edge-litert", "tflite-runtime"), tested=True),
    Road("litert", "edgetpu", ("ai_edge_litert", "tflite_runtime"), ("ai-edge-litert", "tflite-runtime")),
    Road("rknnlite", "npu", ("rknnlite",), ("rknn-toolkit-lite2",)),
    Road("hailort", "npu", ("hailo_platform",), ("hailort",)),
)


def road(runtime: str, provider: str = "cpu") -> Road | None:
    """The row of ROADS, None if no driver knows it."""
    return next((one for one in ROADS if (one.runtime, one.provider) == (runtime, provider)), None)


def installed(runtime: str, provider: str = "cpu") -> bool:
    """Whether the libraries of one road can be found here. That a vendor's library loads is for a probe to show."""
    found = road(runtime, provider)
    if found is None:
        return False
    module = next((name for name in found.modules if importlib.util.find_spec(name) is not None), None)
    if module is None:
        return False
    if found.plugin and importlib.util.find_spec(found.plugin) is not None:
        return True
    return not found.library or (_folder(module) / "capi" / found.library).exists()


def installed_roads() -> set[tuple[str, str]]:
    """(runtime, provider) of every road whose libraries are here."""
    return {(one.runtime, one.provider) for one in ROADS if installed(one.runtime, one.provider)}


def version(runtime: str, provider: str = "cpu") -> str:
    """The installed version that a stored measurement is valid for, "" if the package says none.

    For a provider that is a package of its own, both versions: "1.32.0+1.8.1".
    """
    found = road(runtime, provider)
    if found is None:
        return ""
    texts = [_version(found.distributions)]
    if found.plugin:
        texts.insert(0, _version(_ORT))
    return "+".join(dict.fromkeys(text for text in texts if text))


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]) if places else Path("/nonexistent")
