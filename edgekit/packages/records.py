"""How a package was made, as a JSON file of it: its hash is in the manifest, and it travels with the model.

A record holds no time and no place: the same model, pictures and tools give the same record.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import msgspec

from edgekit import VERSION
from edgekit.packages.package import Package

MAX_BYTES = 16 << 20
"""Of a record."""
_TOOLS = ("onnx", "onnxruntime", "numpy")

R = TypeVar("R", bound=msgspec.Struct)


def record_bytes(record: msgspec.Struct) -> bytes:
    """The record as it lies in a package. Equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def read_record(
    package: Package, file: str, kind: type[R], error: Callable[[str], Exception], max_bytes: int = MAX_BYTES
) -> R | None:
    """The record in `file` of a package, None if it has none; `error` makes what is raised for a damaged one."""
    if file not in package.manifest.files:
        return None
    if package.sizes[file] > max_bytes:
        raise error(f"{file} of {package.ref} has {package.sizes[file]} bytes; {max_bytes} are allowed")
    try:
        return msgspec.json.decode(package.path(file).read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise error(f"{file} of {package.ref} cannot be read: {problem}") from None


def tools(program: str) -> dict[str, str]:
    """Programs that shape what `program` makes, with versions, and the kind of processor that it was judged on."""
    found = {program: VERSION, "machine": platform.machine()}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a vendor's build under another name
            found[name] = "unknown"
    return found
