"""What the protocol tells about the server and its models: JSON values, no HTTP. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edged.serve.oip.models import ModelTable, ServedModel, protocol_version
from edged.serve.oip.signature import PLATFORMS, Port
from edgekit import VERSION
from edgekit.packages import PackageError, split_ref, version_key

EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
MAX_BATCH = 64
"""What the configuration says about a model with a free first dimension."""

TRACE_OFF = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
LOGGING = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


def server() -> dict[str, Any]:
    """GET /v2"""
    return {"name": "edged", "version": VERSION, "extensions": EXTENSIONS}


def model(found: ServedModel, versions: Sequence[ServedModel]) -> dict[str, Any]:
    """GET /v2/models/NAME"""
    return {
        "name": found.name,
        "versions": [version.number for version in versions],
        "platform": PLATFORMS[found.loaded.variant.runtime],
        "inputs": [_tensor(port) for port in found.signature.inputs.values()],
        "outputs": [_tensor(port) for port in found.signature.outputs.values()],
    }


def _tensor(port: Port) -> dict[str, Any]:
    return {"name": port.name, "datatype": port.datatype, "shape": port.shape}


def config(found: ServedModel) -> dict[str, Any]:
    """GET /v2/models/NAME/config: the parts of Triton's ModelConfig that clients read.

    With a free first dimension the dims leave it out, and max_batch_size is not 0; that is Triton's rule.
    """
    runtime = found.loaded.variant.runtime
    parameters = {"package": {"string_value": found.package.ref}}
    if found.classifier is not None:
        parameters["metadata"] = {"string_value": _class_names(found)}
    batched = found.signature.batched
    return {
        "name": found.name,
        "platform": PLATFORMS[runtime],
        "backend": runtime,
        "runtime": "",
        "version_policy": {"specific": {"versions": [int(found.number)]}},
        "max_batch_size": MAX_BATCH if batched else 0,
        "input": [
            {
                "name": port.name,
                "data_type": f"TYPE_{_config_type(port)}",
                "format": "FORMAT_NONE",
                "dims": port.shape[1:] if batched else port.shape,
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
                "is_non_linear_format_io": False,
            }
            for port in found.signature.inputs.values()
        ],
        "output": [
            {
                "name": port.name,
                "data_type": f"TYPE_{_config_type(port)}",
                "dims": port.shape[1:] if batched else port.shape,
                "label_filename": "",
                "is_shape_tensor": False,
                "is_non_linear_format_io": False,
            }
            for port in found.signature.outputs.values()
        ],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [],
        "default_model_filename": found.loaded.variant.file,
        "parameters": parameters,
        "model_warmup": [],
    }


def _config_type(port: Port) -> str:
    return "STRING" if port.datatype == "BYTES" else port.datatype


def _class_names(found: ServedModel) -> str:
    """What Ultralytics' client looks for: a Python literal, which repr of plain values always is."""
    spec = found.package.manifest.input
    return repr(
        {
            "task": "classify",
            "imgsz": [spec.height, spec.width],
            "batch": 1,
            "stride": 32,
            "channels": 1 if spec.colour == "grey" else 3,
            "names": dict(enumerate(found.loaded.labels)),
        }
    )


def statistics(models: Iterable[ServedModel]) -> dict[str, Any]:
    """GET /v2/models/NAME/stats and /v2/models/stats"""
    return {"model_stats": [found.counters.wire(found.name, found.number) for found in models]}


def index(
    models: ModelTable, packages: Iterable[str], failures: Mapping[str, str], only_ready: bool
) -> list[dict[str, str]]:
    """POST /v2/repository/index: every model that is served, failed, or only installed.

    `packages` are references (name or name@version) of what is installed, `failures` says why some cannot run.
    """
    entries = {(found.name, found.version): ("READY", "") for found in models}
    names = {name for name, _ in entries}
    for ref, reason in failures.items():
        entries.setdefault(_split(ref), ("UNAVAILABLE", reason))
    if not only_ready:
        installed = [_split(ref) for ref in packages]
        names |= {name for name, version in installed if version}
        for name, version in installed:
            if version or name not in names:  # a bare name only says which version is the newest
                entries.setdefault((name, version), ("UNAVAILABLE", "installed, but not served"))
    return [
        {"name": name, "version": protocol_version(version) if version else "", "state": state, "reason": reason}
        for (name, version), (state, reason) in sorted(
            entries.items(), key=lambda entry: (entry[0][0], version_key(entry[0][1]))
        )
        if state == "READY" or not only_ready
    ]


def _split(ref: str) -> tuple[str, str]:
    try:
        name, version = split_ref(ref)
    except PackageError:
        return ref, ""
    return name, version or ""
