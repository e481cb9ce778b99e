"""What a foreign file is, told by its bytes and not by its name; nothing in it is unpickled or executed."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path
from typing import Any, Literal

from cloudd.importing.archives import ArchiveTooLarge, open_archive
from cloudd.importing.errors import ImportRefused
from edgekit.runtimes import ModelError
from edgekit.runtimes.base import check_model_file
from edgekit.runtimes.onnx_reader import read_references

Kind = Literal["onnx", "tflite", "torchscript", "exported", "keras", "saved_model"]
"""`exported` is a `.pt2` of `torch.export.save`, `saved_model` a directory of TensorFlow's."""

_MAX_TABLE = 16 << 20
"""Bytes of a table of weights in an archive."""

_WHOLE = (
    "holds Python objects (a pickle), which can run any program when they are read, so nobody reads it here. Write the "
    "whole program instead, where the model's own source is: torch.export.save(torch.export.export(model.eval(), "
    '(torch.zeros(1, 3, HEIGHT, WIDTH),)), "model.pt2"), or torch.onnx.export'
)
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x80\x02", _WHOLE),
    (b"\x80\x03", _WHOLE),
    (b"\x80\x04", _WHOLE),
    (b"\x80\x05", _WHOLE),
    (b"GGUF", "is a GGUF file of a language model, which is not a model for pictures"),
    (
        b"RKNN",
        "is compiled for a Rockchip NPU: put it into a package by hand, as another variant (docs/model-package.md)",
    ),
    (
        b"\x01HEF",
        "is compiled for a Hailo NPU: put it into a package by hand, as another variant (docs/model-package.md)",
    ),
    (b"<?xml", "is OpenVINO's or other XML; export the model as ONNX from where it was trained"),
    (b"7767517", "is ncnn's; export the model as ONNX from where it was trained"),
)
"""First bytes of what is known, and not taken."""


def recognise(source: Path) -> Kind:
    """The kind of the file, or directory, at `source`.

    Raises ImportRefused for anything else, with what could be done instead; for links, special files and sizes beyond
    every model; and for archives that would have to be unpickled.
    """
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            return _directory(source)
        check_model_file(source.resolve())
        with source.open("rb") as file:
            start = file.read(16)
    except ModelError as error:
        raise ImportRefused(str(error)) from None
    except OSError as error:
        raise ImportRefused(f"{source} cannot be read: {error.strerror}") from None
    if start[4:8] == b"TFL3":
        return "tflite"
    if start.startswith(b"\x89HDF"):
        return "keras"
    if start.startswith(b"PK"):
        return _archive(source)
    for known, why in _STARTS:
        if start.startswith(known):
            raise ImportRefused(f"{source.name} {why}")
    if start[8:9] == b"{":
        raise ImportRefused(
            f"{source.name} is a safetensors file: weights without the network that they belong to. "
            "Export the model as ONNX or .pt2 from where it was trained"
        )
    try:
        read_references(source)
    except ModelError:
        raise ImportRefused(
            f"{source.name} is none of ONNX, TFLite, TorchScript, .pt2, Keras, nor a TensorFlow SavedModel directory"
        ) from None
    return "onnx"


def _directory(source: Path) -> Kind:
    if (source / "saved_model.pb").is_file():
        return "saved_model"
    if (source / "package.toml").is_file():
        raise ImportRefused(f"{source} is a model package already; register it with: cloudd models add {source}")
    raise ImportRefused(
        f"{source} is a directory without saved_model.pb, so it is no TensorFlow SavedModel; name the model's file"
    )


def _archive(source: Path) -> Kind:
    try:
        with open_archive(source) as archive:
            names = archive.namelist()
            leaves = {name.partition("/")[2] for name in names} | set(names)
            if "models/model.json" in leaves or "serialized_exported_program.json" in leaves:
                _check_exported(source, archive)
                return "exported"
            if "constants.pkl" in leaves and any(leaf.startswith("code/") for leaf in leaves):
                return "torchscript"
            if {"config.json", "model.weights.h5"} <= set(names):
                return "keras"
    except ArchiveTooLarge as error:
        raise ImportRefused(f"{source.name} is no model: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise ImportRefused(f"{source.name} is a damaged archive: {str(error)[:200]}") from None
    if "data.pkl" in leaves:
        raise ImportRefused(f"{source.name} {_WHOLE}")
    raise ImportRefused(f"{source.name} is an archive, but neither TorchScript, .pt2 nor Keras")


def _check_exported(source: Path, archive: zipfile.ZipFile) -> None:
    """Raise ImportRefused where weights or constants are Python objects, which torch would unpickle without asking."""
    for entry in archive.infolist():
        leaf = entry.filename.rpartition("/")[2]
        if leaf.startswith(("custom_obj_", "opaque_obj_")):
            raise ImportRefused(f"{source.name} carries Python objects ({leaf[:80]}); export a model of plain tensors")
        if not leaf.endswith(("weights_config.json", "constants_config.json")):
            continue
        if entry.file_size > _MAX_TABLE:
            raise ImportRefused(f"{leaf[:80]} in {source.name} has more than {_MAX_TABLE} bytes")
        try:
            pickled = _pickled(json.loads(archive.read(entry)))
        except (ValueError, RecursionError, zipfile.BadZipFile):
            raise ImportRefused(f"{leaf[:80]} in {source.name} is damaged") from None
        if pickled:
            raise ImportRefused(
                f"{source.name} keeps {pickled[:80]!r} as a Python object; export it again with plain tensors "
                "(contiguous, on the CPU, no subclasses)"
            )


def _pickled(table: Any) -> str:
    """The first tensor of a table of weights or constants that is pickled."""
    config = table.get("config", {}) if isinstance(table, dict) else {}
    if not isinstance(config, dict):
        raise ValueError("no table")
    return next(
        (str(name) for name, one in config.items() if not isinstance(one, dict) or one.get("use_pickle") is not False),
        "",
    )
