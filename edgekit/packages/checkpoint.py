"""The table of package.toml that names the un-folded checkpoint: the network as it was before BatchNormalization went.

Exporters write a BatchNormalization into the weights of the layer before it. That changes no answer and saves time, but
its mean and variance cannot be told from the weights any more, so nobody can estimate them anew for another scene. A
package may therefore carry the same network a second time, for learning only; nothing is ever served from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from edgekit.packages.manifest import Manifest

CHECKPOINT_FOLDER = "checkpoint"
"""Where our own steps put it."""
MAX_CHECKPOINT = 1 << 30
"""Bytes of all files in its folder."""


class CheckpointSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[checkpoint]`. `file` is an fp32 ONNX file in a folder of its own; what lies beside it belongs to it.

    Its input and outputs have the names, shapes and meanings of the package's own float file, and the same values but
    for rounding.
    """

    file: str


def checkpoint_fault(spec: CheckpointSpec | None, task: str, others: Sequence[str]) -> str:
    """What is wrong with the table beyond its path, as a sentence; "" if nothing is.

    `others`: every other path that the manifest names.
    """
    if spec is None:
        return ""
    if task in ("head", "tail"):
        return f"[checkpoint] is there; a {task} is half of a model, and the whole model has the checkpoint"
    folder = PurePosixPath(spec.file).parent
    if folder == PurePosixPath():
        return (
            f'"checkpoint.file" is {spec.file[:200]!r}; it needs a folder of its own, '
            f'such as "{CHECKPOINT_FOLDER}/model.onnx", because all files of that folder belong to it'
        )
    if inside := next((path for path in others if PurePosixPath(path).is_relative_to(folder)), ""):
        return f'{inside[:200]!r} lies in "{str(folder)[:200]}", the folder of the checkpoint, which is for it alone'
    return ""


def checkpoint_files(manifest: Manifest) -> list[str]:
    """Every listed file of the checkpoint; none without one."""
    if manifest.checkpoint is None:
        return []
    folder = PurePosixPath(manifest.checkpoint.file).parent
    return sorted(path for path in manifest.files if PurePosixPath(path).is_relative_to(folder))


def oversized(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """A sentence if the checkpoint has more than MAX_CHECKPOINT bytes; "" if not. `sizes`: path -> bytes."""
    total = sum(sizes[path] for path in checkpoint_files(manifest))
    return f"the checkpoint has {total} bytes; {MAX_CHECKPOINT} are allowed" if total > MAX_CHECKPOINT else ""


def learning_file(manifest: Manifest) -> str | None:
    """The file that learns: the checkpoint, else the first fp32 file for onnxruntime on any chip; None without one."""
    if manifest.checkpoint is not None:
        return manifest.checkpoint.file
    wanted = ("onnxruntime", "fp32", None)
    return next((one.file for one in manifest.variants if (one.runtime, one.precision, one.target) == wanted), None)
