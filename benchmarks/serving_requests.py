"""One prepared request for each kind of server and input: what a careful client of that server would send."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.load_generator import post
from benchmarks.serving_models import Model, picture, tensor

How = Literal["tensor", "jpeg"]
"""What the client has: float32 values, or a JPEG of the model's own size."""

_JSON = {"Content-Type": "application/json"}


def edged(model: Model, how: How) -> bytes:
    """Open Inference Protocol with binary data: FP32, or the JPEG as an element of BYTES; so are the outputs."""
    if how == "tensor":
        values = tensor(model.side)
        return _binary(model, "FP32", list(values.shape), values.tobytes())
    jpeg = picture(model.side)
    return _binary(model, "BYTES", [1], struct.pack("<I", len(jpeg)) + jpeg)


def mlserver(model: Model, how: How) -> bytes:
    """Open Inference Protocol as JSON, as this server knows no binary tensors over HTTP: numbers, or base64."""
    given: dict[str, Any]
    if how == "tensor":
        values = tensor(model.side)
        given = {"shape": list(values.shape), "datatype": "FP32", "data": _numbers(values)}
    else:
        given = {
            "shape": [1],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [base64.b64encode(picture(model.side)).decode("ascii")],
        }
    return post(f"/v2/models/{model.name}/infer", json.dumps({"inputs": [{"name": "input", **given}]}).encode(), _JSON)


def litserve(model: Model, how: How) -> bytes:
    """JSON with base64, which its own examples use for pictures."""
    raw = tensor(model.side).tobytes() if how == "tensor" else picture(model.side)
    return post("/predict", json.dumps({how: base64.b64encode(raw).decode("ascii")}).encode(), _JSON)


def inspect(service: str, side: int) -> bytes:
    """edged's own short way: a JPEG to a service."""
    return post(f"/v1/services/{service}/inspect", picture(side), {"Content-Type": "image/jpeg"})


def _numbers(values: NDArray[np.float32]) -> list[float]:
    """Four decimals, as a client would write pixels in 0..1: half the bytes of all digits."""
    return [round(float(value), 4) for value in values.ravel()]


def _binary(model: Model, datatype: str, shape: list[int], raw: bytes) -> bytes:
    given = {"name": "input", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    return post(
        f"/v2/models/{model.name}/infer",
        header + raw,
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))},
    )
