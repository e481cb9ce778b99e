"""Requests of the Open Inference Protocol, and what Triton 2.51 answered to each.

They are for a model `tiny64` with the FP32 input `input` [-1,3,64,64] and the output `logits` [-1,5], which answers
`LOGITS` whatever it is given. Where Triton's body says something about its own state (statistics), only its structure
counts.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.packages import InputSpec, Manifest, OutputSpec, Variant, seal_package

MODEL = "tiny64"
LOGITS = [-0.07678147405385971, 0.12550751864910126, 0.046218354254961014, 0.06580761820077896, 0.0448506660759449]
TENSOR = struct.pack("<f", 0.5) * (3 * 64 * 64)


def make_tiny64(directory: Path) -> Path:
    """A package of the model that the probes are for. It is no classifier, and has no labels."""
    weights = {
        "nothing": np.zeros((1, 5), np.float32),
        "logits_of_all": np.array(LOGITS, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"], axis=1),
            helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Gemm", ["mean", "nothing", "logits_of_all"], ["logits"]),
        ],
        MODEL,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx")
    manifest = Manifest(
        name=MODEL,
        version="1",
        task="tensors",
        input=InputSpec(width=64, height=64, scale=[1 / 255]),
        output=OutputSpec(kind="none"),
        variants=[Variant(file="model.onnx")],
    )
    seal_package(directory, manifest)
    return directory


@dataclass(frozen=True)
class Probe:
    """One request, and Triton's status and body: its JSON text, and the bytes of tensors behind it."""

    name: str
    method: str
    path: str
    status: int
    reply: str = ""
    tail: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    encoding: str = ""  # Content-Encoding of Triton's reply
    structure: bool = False  # only keys and types of the reply count


def _error(text: str) -> str:
    return json.dumps({"error": text}, separators=(",", ":"))


def _header(**changes: Any) -> bytes:
    """The JSON of a request with one binary tensor."""
    shape, size = changes.pop("shape", [1, 3, 64, 64]), changes.pop("size", len(TENSOR))
    entry = {
        "name": changes.pop("name", "input"),
        "shape": shape,
        "datatype": changes.pop("datatype", "FP32"),
        "parameters": {"binary_data_size": size},
    }
    return json.dumps({"inputs": [entry], **changes}).encode()


def _infer(
    name: str,
    status: int,
    reply: str,
    header: bytes,
    data: bytes = TENSOR,
    *,
    tail: int = 0,
    path: str = f"/v2/models/{MODEL}/infer",
    length: int | str | None = None,
    body: bytes | None = None,
    encoding: str = "",
    **headers: str,
) -> Probe:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given["Inference-Header-Content-Length"] = str(len(header) if length is None else length)
    given["Content-Type"] = "application/octet-stream"
    sent = header + data if body is None else body
    return Probe(name, "POST", path, status, reply, tail, sent, given, encoding)


def _answer(size: int = 20, batch: int = 1, id: str = "") -> str:
    first = f'"id":"{id}",' if id else ""
    return (
        f'{{{first}"model_name":"tiny64","model_version":"1","outputs":[{{"name":"logits","datatype":"FP32",'
        f'"shape":[{batch},5],"parameters":{{"binary_data_size":{size}}}}}]}}'
    )


def _json_answer(id: str = "") -> str:
    first = f'"id":"{id}",' if id else ""
    values = ",".join(repr(float(np.float32(value))) for value in LOGITS)
    return (
        f'{{{first}"model_name":"tiny64","model_version":"1","outputs":[{{"name":"logits","datatype":"FP32",'
        f'"shape":[1,5],"data":[{values}]}}]}}'
    )


_M = f"/v2/models/{MODEL}"
_BINARY = {"binary_data_output": True}
_NOT_FOUND = _error("Not Found")
_NOT_ALLOWED = _error("Method Not Allowed")
_UNKNOWN_ID = "[request id: <id_unknown>] "
_NOTE = (
    ". NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
_STATISTICS = {
    "name": MODEL,
    "version": "1",
    "last_inference": 1795346378750,
    "inference_count": 17,
    "execution_count": 16,
    "inference_stats": {
        name: {"count": 16, "ns": 150837520}
        for name in (
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        )
    },
    "response_stats": {},
    "batch_stats": [
        {
            "batch_size": 1,
            **{name: {"count": 15, "ns": 770778} for name in ("compute_input", "compute_infer", "compute_output")},
        }
    ],
    "memory_usage": [],
}
_QUARTER = TENSOR[: len(TENSOR) // 4]
_ALL_BINARY = _header(parameters=_BINARY)
_JSON_INPUT = {"name": "input", "shape": [1, 3, 64, 64], "datatype": "FP32"}

PROBES = [
    Probe("live", "GET", "/v2/health/live", 200),
    Probe("ready", "GET", "/v2/health/ready", 200),
    Probe("health bare", "GET", "/v2/health", 404, _NOT_FOUND),
    Probe(
        "server metadata",
        "GET",
        "/v2",
        200,
        '{"name":"triton","version":"2.51.0","extensions":["classification","sequence","model_repository",'
        '"model_repository(unload_dependents)","schedule_policy","model_configuration","system_shared_memory",'
        '"cuda_shared_memory","binary_tensor_data","parameters","statistics","trace","logging"]}',
    ),
    Probe("trailing slash", "GET", "/v2/", 404, _NOT_FOUND),
    Probe("model ready", "GET", f"{_M}/ready", 200),
    Probe("model ready v1", "GET", f"{_M}/versions/1/ready", 200),
    Probe("model ready unknown", "GET", "/v2/models/nope/ready", 400, _error("Model version not ready")),
    Probe("ready unknown version", "GET", f"{_M}/versions/9/ready", 400, _error("Model version not ready")),
    Probe(
        "model metadata",
        "GET",
        _M,
        200,
        '{"name":"tiny64","versions":["1"],"platform":"python","inputs":[{"name":"input","datatype":"FP32",'
        '"shape":[-1,3,64,64]}],"outputs":[{"name":"logits","datatype":"FP32","shape":[-1,5]}]}',
    ),
    Probe("metadata unknown", "GET", "/v2/models/nope", 404, _error("Request for unknown model: 'nope' is not found")),
    Probe(
        "metadata unknown version",
        "GET",
        f"{_M}/versions/9",
        404,
        _error("Request for unknown model: 'tiny64' version 9 is not found"),
    ),
    Probe("metadata alpha version", "GET", f"{_M}/versions/abc", 404, _NOT_FOUND),
    Probe(
        "model config",
        "GET",
        f"{_M}/config",
        200,
        '{"name":"tiny64","platform":"","backend":"python","runtime":"","version_policy":{"latest":{"num_versions":1}},'
        '"max_batch_size":8,"input":[{"name":"input","data_type":"TYPE_FP32","format":"FORMAT_NONE","dims":[3,64,64],'
        '"is_shape_tensor":false,"allow_ragged_batch":false,"optional":false,"is_non_linear_format_io":false}],'
        '"output":[{"name":"logits","data_type":"TYPE_FP32","dims":[5],"label_filename":"","is_shape_tensor":false,'
        '"is_non_linear_format_io":false}],"batch_input":[],"batch_output":[],"optimization":{},'
        '"dynamic_batching":{}}',
    ),
    Probe("index", "POST", "/v2/repository/index", 200, "[]"),
    Probe("index ready", "POST", "/v2/repository/index", 200, "[]", body=b'{"ready":true}'),
    Probe("index GET", "GET", "/v2/repository/index", 405, _NOT_ALLOWED),
    Probe(
        "load unknown",
        "POST",
        "/v2/repository/models/nope/load",
        500,
        _error("failed to load 'nope', failed to poll from model repository"),
        body=b"{}",
    ),
    Probe(
        "unload unknown",
        "POST",
        "/v2/repository/models/nope/unload",
        200,
        body=b'{"parameters":{"unload_dependents":false}}',
    ),
    _infer("infer binary, all binary out", 200, _answer(), _ALL_BINARY, tail=20),
    _infer(
        "infer id + version",
        200,
        _answer(id="42"),
        _header(id="42", parameters=_BINARY),
        tail=20,
        path=f"{_M}/versions/1/infer",
    ),
    _infer("infer binary in, JSON out (default)", 200, _json_answer(), _header()),
    _infer(
        "binary out by output",
        200,
        _answer(),
        _header(outputs=[{"name": "logits", "parameters": {"binary_data": True}}]),
        tail=20,
    ),
    _infer(
        "classification 2",
        200,
        '{"model_name":"tiny64","model_version":"1","outputs":[{"name":"logits","datatype":"BYTES","shape":[1,2],'
        '"data":["0.125508:1","0.065808:3"]}]}',
        _header(outputs=[{"name": "logits", "parameters": {"binary_data": False, "classification": 2}}]),
    ),
    _infer("raw (header length 0)", 200, _answer(), b"", tail=20),
    _infer(
        "raw, no data",
        400,
        _error(
            f"{_UNKNOWN_ID}input byte size mismatch for input 'raw_input' for model 'tiny64'. Expected 49152, got 0"
        ),
        b"",
        b"",
    ),
    Probe("infer GET", "GET", f"{_M}/infer", 405, _NOT_ALLOWED),
    _infer(
        "unknown model",
        404,
        _error("Request for unknown model: 'nope' is not found"),
        _header(),
        path="/v2/models/nope/infer",
    ),
    _infer(
        "unknown version",
        404,
        _error("Request for unknown model: 'tiny64' version 9 is not found"),
        _header(),
        path=f"{_M}/versions/9/infer",
    ),
    _infer("wrong input name", 400, _error("unexpected inference input 'x' for model 'tiny64'"), _header(name="x")),
    _infer(
        "wrong dtype",
        400,
        _error(f"{_UNKNOWN_ID}inference input 'input' data-type is 'UINT8', but model 'tiny64' expects 'FP32'"),
        _header(datatype="UINT8", size=len(_QUARTER)),
        _QUARTER,
    ),
    _infer(
        "wrong shape",
        400,
        _error(
            f"{_UNKNOWN_ID}unexpected shape for input 'input' for model 'tiny64'. Expected [-1,3,64,64], "
            f"got [1,3,32,32]{_NOTE}"
        ),
        _header(shape=[1, 3, 32, 32], size=len(_QUARTER)),
        _QUARTER,
    ),
    _infer(
        "short data",
        400,
        _error("unexpected size for input 'input', expecting 49052 additional bytes for model 'tiny64'"),
        _header(),
        TENSOR[:100],
    ),
    _infer(
        "extra data", 400, _error("unexpected additional input data for model 'tiny64'"), _header(), TENSOR + b"1234"
    ),
    _infer(
        "size mismatch shape",
        400,
        _error(f"{_UNKNOWN_ID}input byte size mismatch for input 'input' for model 'tiny64'. Expected 49152, got 16"),
        _header(size=16),
        TENSOR[:16],
    ),
    _infer(
        "unknown output",
        400,
        _error("unexpected inference output 'zzz' for model 'tiny64'"),
        _header(outputs=[{"name": "zzz"}]),
    ),
    _infer(
        "bad header length",
        400,
        _error(f"inference header size should be in range (0, {len(_header()) + len(TENSOR)}), got: 1000000"),
        _header(),
        length=10**6,
    ),
    _infer(
        "header length not int",
        400,
        _error(
            f"{_UNKNOWN_ID}input byte size mismatch for input 'raw_input' for model 'tiny64'. Expected 49152, "
            f"got {len(_header()) + len(TENSOR)}"
        ),
        _header(),
        length="abc",
    ),
    _infer(
        "batch 2",
        200,
        _answer(40, 2),
        _header(shape=[2, 3, 64, 64], size=2 * len(TENSOR), parameters=_BINARY),
        TENSOR * 2,
        tail=40,
    ),
    Probe(
        "empty body",
        "POST",
        f"{_M}/infer",
        400,
        _error(
            f"{_UNKNOWN_ID}input byte size mismatch for input 'raw_input' for model 'tiny64'. Expected 49152, got 0"
        ),
    ),
    Probe(
        "bad json",
        "POST",
        f"{_M}/infer",
        500,
        _error("failed to parse the request JSON buffer: Missing a name for object member. at 1"),
        body=b"{nope",
    ),
    Probe(
        "no inputs",
        "POST",
        f"{_M}/infer",
        500,
        _error("Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        body=b"{}",
    ),
    Probe(
        "json infer",
        "POST",
        f"{_M}/infer",
        200,
        _json_answer("a"),
        body=json.dumps({"id": "a", "inputs": [_JSON_INPUT | {"data": [0.5] * 12288}]}).encode(),
    ),
    Probe(
        "json nested short",
        "POST",
        f"{_M}/infer",
        500,
        _error("Unable to parse 'data': Shape does not match true shape of 'data' field"),
        body=json.dumps({"inputs": [_JSON_INPUT | {"data": [0.5] * 12}]}).encode(),
    ),
    _infer(
        "gzip request",
        200,
        _answer(),
        _ALL_BINARY,
        tail=20,
        body=gzip.compress(_ALL_BINARY + TENSOR),
        Content_Encoding="gzip",
    ),
    _infer(
        "deflate request",
        200,
        _answer(),
        _ALL_BINARY,
        tail=20,
        body=zlib.compress(_ALL_BINARY + TENSOR),
        Content_Encoding="deflate",
    ),
    _infer("br request", 501, _error("Unsupported compression type"), _ALL_BINARY, Content_Encoding="br"),
    _infer("accept gzip", 200, _answer(), _ALL_BINARY, tail=20, encoding="gzip", Accept_Encoding="gzip"),
    _infer("accept deflate", 200, _answer(), _ALL_BINARY, tail=20, encoding="deflate", Accept_Encoding="deflate"),
    _infer(
        "accept gzip, deflate", 200, _answer(), _ALL_BINARY, tail=20, encoding="gzip", Accept_Encoding="gzip, deflate"
    ),
    _infer(
        "triton_ param",
        400,
        _error("parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."),
        _header(parameters={"triton_x": 1}),
    ),
    _infer("custom param", 200, _answer(), _header(parameters={"station": 7, **_BINARY}), tail=20),
    _infer(
        "priority timeout",
        200,
        _answer(),
        _header(parameters={"priority": 1, "timeout": 1000000, **_BINARY}),
        tail=20,
    ),
    _infer("timeout 1us", 200, _answer(), _header(parameters={"timeout": 1, **_BINARY}), tail=20),
    Probe("stats model", "GET", f"{_M}/stats", 200, json.dumps({"model_stats": [_STATISTICS]}), structure=True),
    Probe("stats all", "GET", "/v2/models/stats", 200, json.dumps({"model_stats": [_STATISTICS]}), structure=True),
    Probe("shm status", "GET", "/v2/systemsharedmemory/status", 200, "[]"),
    Probe(
        "shm register missing",
        "POST",
        "/v2/systemsharedmemory/region/r0/register",
        500,
        _error("Unable to open shared memory region: '/edged_nope'"),
        body=b'{"key":"/edged_nope","offset":0,"byte_size":64}',
    ),
    Probe("shm unregister", "POST", "/v2/systemsharedmemory/region/r0/unregister", 200),
    Probe("cuda shm status", "GET", "/v2/cudasharedmemory/status", 200, "[]"),
    Probe(
        "trace setting",
        "GET",
        "/v2/trace/setting",
        200,
        '{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","log_frequency":"0","trace_file":"",'
        '"trace_mode":"triton"}',
    ),
    Probe(
        "logging",
        "GET",
        "/v2/logging",
        200,
        '{"log_file":"","log_info":true,"log_warning":true,"log_error":true,"log_verbose_level":0,'
        '"log_format":"default"}',
    ),
    Probe("unknown path", "GET", "/v2/zzz", 404, _NOT_FOUND),
    Probe("v1", "GET", f"/v1/models/{MODEL}", 404, _NOT_FOUND),
    Probe("DELETE model", "DELETE", _M, 405, _NOT_ALLOWED),
]
