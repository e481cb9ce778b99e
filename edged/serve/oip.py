"""Open Inference Protocol v2 endpoints over the loaded models (routing and bodies; the codec is beside this file)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from edged.serve.engine import Engine
from edged.serve.http import HttpError, json_response
from edged.serve.oip_codec import (
    DATATYPES,
    InferRequest,
    RequestError,
    Signature,
    encode_response,
    parse_request,
    wire_shape,
)
from edged.serve.service_runtime import ServiceRuntime
from edgekit import VERSION
from edgekit.packages import version_key
from edgekit.runtimes import ModelError, TensorInfo
from edgekit.vision.classification import Classifier

log = logging.getLogger("edged.serve")

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "litert": "litert_tflite"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model version, and the service in whose queue its requests wait."""

    name: str
    version: str
    classifier: Classifier
    runtime: ServiceRuntime
    signature: Signature


class ModelTable:
    """The models behind the ready services, by name and version."""

    def __init__(self, services: Iterable[ServiceRuntime]) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        for runtime in services:
            if runtime.model is None:
                continue
            manifest, classifier = runtime.model.package.manifest, runtime.model.classifier
            inputs, outputs = classifier.session.inputs, classifier.session.outputs
            signature = Signature(manifest.name, inputs, outputs, inputs[0].name)
            model = ServedModel(manifest.name, manifest.version, classifier, runtime, signature)
            self._models.setdefault(manifest.name, {}).setdefault(manifest.version, model)

    def versions(self, name: str) -> list[str]:
        """Versions of a model, oldest first; empty for an unknown one."""
        return sorted(self._models.get(name, {}), key=version_key)

    def find(self, name: str, version: str | None) -> ServedModel | None:
        """This version, or the newest for None."""
        versions = self.versions(name)
        if version is None and versions:
            version = versions[-1]
        return self._models.get(name, {}).get(version or "")

    def require(self, name: str, version: str | None) -> ServedModel:
        """As `find`. Raises HttpError 404 that names the known models."""
        model = self.find(name, version)
        if model is None:
            wanted = f"'{name[:64]}'" + (f" version {version[:32]}" if version is not None else "")
            known = ", ".join(f"{known}@{v}" for known in sorted(self._models) for v in self.versions(known)) or "none"
            raise HttpError(404, f"Request for unknown model: {wanted} is not found; known models: {known}")
        return model


def server_metadata() -> web.Response:
    """GET /v2"""
    extensions = ["binary_tensor_data", "parameters"]
    return json_response({"name": "edged", "version": VERSION, "extensions": extensions})


def model_metadata(model: ServedModel, versions: list[str]) -> web.Response:
    """GET /v2/models/{name}"""
    return json_response(
        {
            "name": model.name,
            "versions": versions,
            "platform": _PLATFORMS[model.classifier.variant.runtime],
            "inputs": [_describe(tensor) for tensor in model.signature.inputs],
            "outputs": [_describe(tensor) for tensor in model.signature.outputs],
        }
    )


def _describe(tensor: TensorInfo) -> dict[str, Any]:
    datatype = DATATYPES.get(tensor.dtype, tensor.dtype.upper())
    return {"name": tensor.name, "datatype": datatype, "shape": wire_shape(tensor)}


async def infer(
    model: ServedModel, body: bytes, header_length: str | None, engine: Engine, clock: Callable[[], float]
) -> web.Response:
    """POST /v2/models/{name}/infer. Parsing, the model and the encoding of the reply all run in a model thread.

    Raises RequestError, ImageError, ModelError and what Engine.submit raises.
    """
    service = model.runtime.service
    outcome = await engine.submit(
        service.name,
        service.priority,
        clock() + service.deadline_ms / 1000,
        lambda: _answer(model, body, header_length),
    )
    encoded, json_length = outcome.value
    if json_length is None:
        return web.Response(body=encoded, content_type="application/json")
    headers = {"Inference-Header-Content-Length": str(json_length)}
    return web.Response(body=encoded, headers=headers, content_type="application/octet-stream")


def _answer(model: ServedModel, body: bytes, header_length: str | None) -> tuple[bytes, int | None]:
    request = parse_request(body, header_length, model.signature)
    results = _run(model, request)
    for name, _ in request.outputs:
        array = results[name]
        if array.dtype.name not in DATATYPES:
            raise RequestError(f"output '{name}' is {array.dtype.name}, which the protocol cannot carry")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(f"output '{name}' contains NaN or infinity")
    return encode_response(model.name, model.version, request, results)


def _run(model: ServedModel, request: InferRequest) -> dict[str, NDArray[Any]]:
    session = model.classifier.session
    names = [tensor.name for tensor in session.outputs]
    if not request.pictures:
        return dict(zip(names, session.run(request.arrays), strict=True))
    # One by one: a batch gains nothing on a CPU, and the model's batch size may be fixed.
    ((name, pictures),) = request.pictures.items()
    rows = [session.run({name: model.classifier.tensor(picture)}) for picture in pictures]
    return {output: np.concatenate([row[at] for row in rows]) for at, output in enumerate(names)}
