"""What a profile may ask of each runtime, and what to tell a person whose device lacks it. Data; imports no runtime.

A profile is a file that anybody may edit, so its options go through the patterns below: nothing that names a file, a
library or a program can be set from there. Such paths come from the runtime's driver.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from edgekit import toml

_BOOL = "True|False"
_BYTES = r"[1-9][0-9]{5,11}"
_INDEX = r"[0-9]|1[0-5]"
_ARENA = "kNextPowerOfTwo|kSameAsRequested"


class Rule(NamedTuple):
    """One way of running a model: (runtime, provider).

    `options`: name -> pattern of the whole value. `install`: one sentence for people. `format`: of the model file.
    """

    format: str
    install: str
    options: dict[str, str] = {}  # noqa: RUF012  # a constant; nobody writes to it


_NO_DRIVER = "nothing needs to be done: this version of edged has no driver for {0}, so the model runs on the CPU"
_WHEEL = "put the package {0} into edged's environment in place of onnxruntime"

RULES: dict[tuple[str, str], Rule] = {
    ("onnxruntime", "cpu"): Rule("onnx", "install the extra: pip install 'edged-cloudd[serve]'"),
    ("onnxruntime", "openvino"): Rule(
        "onnx",
        "install the extra: pip install 'edged-cloudd[openvino]'",
        {"device_type": r"(CPU|GPU|NPU)(\.[0-9])?"},
    ),
    ("onnxruntime", "cuda"): Rule(
        "onnx",
        _WHEEL.format("onnxruntime-gpu (on a Jetson the one from NVIDIA's index)"),
        {
            "device_id": _INDEX,
            "gpu_mem_limit": _BYTES,
            "arena_extend_strategy": _ARENA,
            "cudnn_conv_algo_search": "EXHAUSTIVE|HEURISTIC|DEFAULT",
        },
    ),
    ("onnxruntime", "tensorrt"): Rule(
        "onnx",
        _WHEEL.format("onnxruntime-gpu (on a Jetson the one from NVIDIA's index)") + ", and install TensorRT",
        {
            "device_id": _INDEX,
            "trt_fp16_enable": _BOOL,
            "trt_int8_enable": _BOOL,
            "trt_dla_enable": _BOOL,
            "trt_dla_core": "0|1",
            "trt_max_workspace_size": _BYTES,
            "trt_builder_optimization_level": "[0-5]",
        },
    ),
    ("onnxruntime", "migraphx"): Rule(
        "onnx", _WHEEL.format("onnxruntime-migraphx"), {"device_id": _INDEX, "migraphx_fp16_enable": _BOOL}
    ),
    ("onnxruntime", "qnn"): Rule(
        "onnx",
        "install the package onnxruntime-qnn beside onnxruntime in an environment with Python 3.12 or newer",
        {
            "backend_type": "htp",
            "htp_performance_mode": "burst|balanced|default|high_performance|low_balanced|sustained_high_performance",
            "vtcm_mb": r"[1-9][0-9]?",
            "soc_model": r"[0-9]{1,4}",
            "htp_arch": r"68|69|73|75|79|81",
            "enable_htp_fp16_precision": "0|1",
            "htp_graph_finalization_optimization_mode": "[0-3]",
            "offload_graph_io_quantization": "0|1",
        },
    ),
    ("onnxruntime", "cann"): Rule(
        "onnx",
        "install Huawei's CANN and " + _WHEEL.format("onnxruntime-cann"),
        {
            "device_id": _INDEX,
            "npu_mem_limit": _BYTES,
            "arena_extend_strategy": _ARENA,
            "enable_cann_graph": "0|1|" + _BOOL,
            "precision_mode": "[a-z0-9_]{1,40}",
            "op_select_impl_mode": "high_performance|high_precision",
        },
    ),
    ("onnxruntime", "vitisai"): Rule(
        "onnx", "install AMD's Ryzen AI software, which brings its own onnxruntime", {"target": "X1"}
    ),
    ("litert", "cpu"): Rule("tflite", "install the extra: pip install 'edged-cloudd[tflite]'"),
    ("litert", "edgetpu"): Rule(
        "tflite",
        "install the extra: pip install 'edged-cloudd[tflite]'",
        {"device": r"(usb|pci)(:[0-9])?"},
    ),
    ("litert", "vx"): Rule("tflite", _NO_DRIVER.format("the VX delegate")),
    ("litert", "ethosu"): Rule("tflite", _NO_DRIVER.format("the Ethos-U delegate")),
    ("litert", "neutron"): Rule("tflite", _NO_DRIVER.format("the Neutron delegate")),
    ("litert", "teflon"): Rule("tflite", _NO_DRIVER.format("Mesa's Teflon delegate")),
    ("rknnlite", "npu"): Rule(
        "rknn",
        "install rknn_toolkit_lite2 2.3.2 or newer from Rockchip's rknn-toolkit2 releases",
        {"core_mask": "auto|all|0|1|2|0_1|0_1_2"},
    ),
    ("hailort", "npu"): Rule("hef", "install HailoRT with its Python package (hailo_platform) from Hailo"),
}
"""Every road that a profile may name. One without a driver in edgekit.runtimes is rejected with the sentence here."""

LOADS_CODE = frozenset(
    (
        "trt_extra_plugin_lib_paths",
        "trt_engine_decryption_enable",
        "trt_engine_decryption_lib_path",
        "trt_ep_context_file_path",
        "trt_engine_cache_path",
        "backend_path",
        "library_path",
        "skel_library_dir",
        "artifacts_folder",
        "config_file",
        "load_config",
        "cache_dir",
        "cache_file_path",
        "xclbin",
        "dump_om_model",
    )
)
"""Options that make a runtime load code or read or write a path. Refused by name, so that the message can say why."""

CONVERTERS: dict[str, str] = {
    "rknn": "rknn-toolkit2 on a PC (target_platform='{target}')",
    "hef": "Hailo's Dataflow Compiler on a PC (hw_arch '{target}')",
    "edgetpu": "edgetpu_compiler from a full-integer .tflite",
    "ethos-u65": "Arm's Vela compiler from a full-integer .tflite",
    "neutron": "NXP's neutron-converter from a full-integer .tflite",
    "onnx": "an ONNX export{quantised}",
    "tflite": "a TensorFlow Lite export{quantised}",
}
"""Target or format -> what makes such a file."""

LIBRARIES: dict[str, str] = {
    "librknnrt.so": "install librknnrt.so 2.3 or newer from the board vendor",
    "libedgetpu.so.1": "install Google's Edge TPU runtime (the package libedgetpu1-std)",
    "libhailort.so*": "install HailoRT in the version of the loaded driver",
    "libze_intel_npu.so.1": "install Intel's NPU driver package, 1.16 or newer",
    "libcuda.so.1": "install NVIDIA's driver for this GPU",
    "libvx_delegate.so": "install tflite-vx-delegate from the board's BSP",
    "libethosu_delegate.so": "install the Ethos-U delegate from the board's BSP",
    "libneutron_delegate.so": "install the Neutron delegate from the board's BSP",
    "libteflon.so": "install a Mesa that was built with its Teflon frontend",
}
"""Libraries that a profile may require, and where a person gets them."""

LIBRARY_DIRECTORIES = (
    "/usr/lib",
    "/usr/lib/*-linux-gnu",
    "/usr/lib/*-linux-gnu/tegra",
    "/usr/lib/*-linux-gnu/nvidia",
    "/usr/lib64",
    "/lib",
    "/lib/*-linux-gnu",
    "/lib64",
    "/usr/local/lib",
    "/usr/local/lib/*-linux-gnu",
    "/usr/local/lib64",
)
"""Where libraries are looked for. Fixed here, so that no profile can point elsewhere."""


def check_option(runtime: str, provider: str, name: str, value: str) -> str:
    """What is wrong with one option of a candidate, in one sentence; "" if it may be passed on."""
    rule = RULES[runtime, provider]
    if name in LOADS_CODE:
        return f'the option "{name}" loads code or names a path, which a profile must not; the driver sets such options'
    if name not in rule.options:
        known = ", ".join(rule.options) or "none"
        return f'the option "{name}" is not allowed for {runtime} on {provider}; allowed are: {known}'
    if not re.fullmatch(rule.options[name], value):
        return f'the option "{name}" is {toml.show(value)}, which {runtime} on {provider} does not take'
    return ""


def converter(runtime_format: str, target: str, precision: str) -> str:
    """What makes a file of this format for this target, for the remedy of a package that lacks it."""
    text = CONVERTERS.get(target) or CONVERTERS[runtime_format]
    return text.format(target=target, quantised=", quantised to int8" if precision == "int8" else "")
