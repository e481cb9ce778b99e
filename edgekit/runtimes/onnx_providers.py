"""onnxruntime's execution providers: what each is called, which options it may be given, and how it is attached.

Only "cpu" and "openvino" (on CPUs) have run here. The others are written from their documents and are untested until a
run on their hardware is recorded; whatever they get wrong, the probe finds in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from typing import Any

from edgekit.runtimes.base import ModelError, SessionOptions, check_options


@dataclass(frozen=True)
class Provider:
    """`execution`: onnxruntime's name. `cache`: option -> value with {} for the cache directory."""

    execution: str
    options: frozenset[str] = frozenset()
    defaults: tuple[tuple[str, str], ...] = ()
    cache: tuple[tuple[str, str], ...] = ()
    plugin: str = ""  # module with get_library_path(), for providers that are a package of their own
    needs: tuple[str, ...] = ()  # our names of providers that take what this one leaves, before the CPU


_GPU = frozenset(("device_id", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search"))

PROVIDERS: dict[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider"),
    # https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        frozenset(("device_type",)),
        (("device_type", "CPU"),),
        plugin="onnxruntime_ep_openvino",
    ),
    # https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    "cuda": Provider("CUDAExecutionProvider", _GPU, (("arena_extend_strategy", "kSameAsRequested"),)),
    # https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        frozenset(
            (
                "device_id",
                "trt_fp16_enable",
                "trt_int8_enable",
                "trt_dla_enable",
                "trt_dla_core",
                "trt_max_workspace_size",
                "trt_builder_optimization_level",
            )
        ),
        cache=(
            ("trt_engine_cache_enable", "True"),
            ("trt_engine_cache_path", "{}"),
            ("trt_timing_cache_enable", "True"),
            ("trt_timing_cache_path", "{}"),
        ),
        needs=("cuda",),
    ),
    # https://onnxruntime.ai/docs/execution-providers/MIGraphX-ExecutionProvider.html
    "migraphx": Provider("MIGraphXExecutionProvider", frozenset(("device_id", "migraphx_fp16_enable"))),
    # https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
    "qnn": Provider(
        "QNNExecutionProvider",
        frozenset(
            (
                "backend_type",
                "htp_performance_mode",
                "vtcm_mb",
                "soc_model",
                "htp_arch",
                "enable_htp_fp16_precision",
                "htp_graph_finalization_optimization_mode",
                "offload_graph_io_quantization",
            )
        ),
        (("backend_type", "htp"),),
        plugin="onnxruntime_qnn",
    ),
    # https://onnxruntime.ai/docs/execution-providers/community-maintained/CANN-ExecutionProvider.html
    "cann": Provider(
        "CANNExecutionProvider",
        frozenset(
            (
                "device_id",
                "npu_mem_limit",
                "arena_extend_strategy",
                "enable_cann_graph",
                "precision_mode",
                "op_select_impl_mode",
            )
        ),
    ),
    # https://onnxruntime.ai/docs/execution-providers/Vitis-AI-ExecutionProvider.html
    "vitisai": Provider(
        "VitisAIExecutionProvider", frozenset(("target",)), cache=(("cache_dir", "{}"), ("cache_key", "edged"))
    ),
}


def attach(library: Any, settings: Any, options: SessionOptions) -> list[Any]:
    """Make `settings` (onnxruntime's SessionOptions) use the provider of `options`.

    Returns the list of providers for InferenceSession; it is empty where the provider is attached to `settings`
    already. Raises ModelError if the provider is unknown or absent: onnxruntime itself would only warn and use the CPU.
    """
    chosen = PROVIDERS.get(options.provider)
    if chosen is None:
        raise ModelError(f'onnxruntime has no provider "{options.provider}"; known are {", ".join(PROVIDERS)}')
    check_options(options, chosen.options)
    if options.provider == "cpu":
        return [chosen.execution]
    values = _values(chosen, options)
    if chosen.execution in library.get_available_providers():
        # The CPU is never listed: onnxruntime adds it for what is left over, and refuses the list in strict sessions.
        return [(chosen.execution, values), *(PROVIDERS[name].execution for name in chosen.needs)]
    if chosen.plugin and importlib.util.find_spec(chosen.plugin) is not None:
        _attach_plugin(library, settings, chosen, values)
        return []
    raise ModelError(f'the provider "{options.provider}" is not in the onnxruntime that is installed here')


def _values(provider: Provider, options: SessionOptions) -> dict[str, str]:
    values = {**dict(provider.defaults), **options.provider_options}
    if options.cache:
        values.update((name, value.format(options.cache)) for name, value in provider.cache)
    if options.provider == "openvino":
        values["load_config"] = _openvino_config(values["device_type"], options)
    return values


def _openvino_config(device: str, options: SessionOptions) -> str:
    """OpenVINO's own settings: its thread pools know nothing of onnxruntime's thread count."""
    name = device.partition(".")[0]
    config: dict[str, str] = {"CACHE_DIR": options.cache} if options.cache else {}
    if name == "CPU":
        # A stream is one run at a time: INFERENCE_NUM_THREADS are shared out among the streams.
        config["INFERENCE_NUM_THREADS"] = str(options.threads * options.contexts)
        config["NUM_STREAMS"] = str(options.contexts)
    return json.dumps({name: config})


def _attach_plugin(library: Any, settings: Any, provider: Provider, values: dict[str, str]) -> None:
    wanted = values.pop("device_type", "").partition(".")[0]
    devices = [device for device in _plugin_devices(library, provider) if _is(device, wanted)]
    if not devices:
        kind = f"no {wanted} device" if wanted else "no device"
        raise ModelError(f"{provider.plugin} is installed, but it offers {kind} on this machine")
    settings.add_provider_for_devices(devices[:1], values)


def _plugin_devices(library: Any, provider: Provider) -> list[Any]:
    """The provider's devices. A library is registered once a process, under the provider's name."""
    known = [device for device in library.get_ep_devices() if device.ep_name == provider.execution]
    if known:
        return known
    try:
        path = importlib.import_module(provider.plugin).get_library_path()
        library.register_execution_provider_library(provider.execution, path)
    except Exception as error:  # registered before without any device, missing file, wrong onnxruntime version
        if "already" not in str(error):
            raise ModelError(f"{provider.plugin} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return [device for device in library.get_ep_devices() if device.ep_name == provider.execution]


def _is(device: Any, wanted: str) -> bool:
    """Whether a plug-in's device is of the wanted type: by its own metadata, else by onnxruntime's type."""
    if not wanted:
        return True
    named = str(device.ep_metadata.get("ov_device", ""))
    return (named.partition(".")[0] or str(device.device.type).rpartition(".")[2]) == wanted
