"""Files that only the framework which wrote them can read: TorchScript, `.pt2`, Keras, SavedModel.

The user's own PyTorch writes ONNX, the user's own TensorFlow TFLite, and both answer what the package is compared with.
They run in a child (`cloudd.importing.child`); nothing of them is imported or unpickled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudd.importing import child
from cloudd.importing.brought import Answers
from cloudd.importing.errors import ImportRefused
from cloudd.importing.kinds import Kind

_HERE = Path(__file__).parent
SIDES: dict[Kind, tuple[str, str]] = {
    "torchscript": ("PyTorch", "torch_side.py"),
    "exported": ("PyTorch", "torch_side.py"),
    "keras": ("TensorFlow", "tensorflow_side.py"),
    "saved_model": ("TensorFlow", "tensorflow_side.py"),
}
"""Kind -> the framework that it takes, and our program that runs under it."""
TIMEOUT_S = 900.0
MAX_OUTPUTS = 1 << 30
"""Bytes of all answers together."""


@dataclass(frozen=True)
class Program:
    """A foreign file, the interpreter that reads it, and the folder in which it works."""

    source: Path
    kind: Kind
    python: str
    folder: Path

    def __post_init__(self) -> None:
        if not self.python:
            framework = SIDES[self.kind][0]
            raise ImportRefused(
                f"{self.source.name} can only be read by {framework} itself; name a Python that has it: "
                "--python /path/to/venv/bin/python"
            )

    def export(self, shape: Sequence[int] | None) -> tuple[Path, dict[str, Any]]:
        """Write it as ONNX or TFLite; the file, and what the interpreter says of it: road, versions, maybe the input.

        `shape`: of the input, where the file leaves it open. Raises ImportRefused.
        """
        target = self.folder / "exported"
        answer = self._order({"do": "export", "shape": shape, "target": target.name})
        versions = answer.get("versions")
        if not target.is_file() or target.is_symlink() or not isinstance(versions, dict):
            raise ImportRefused(f"{self.python} wrote no model")
        return target, answer

    def ask(self, tensors: Sequence[NDArray[Any]]) -> Answers:
        """What the framework itself answers to float32 tensors of one shape. Raises ImportRefused."""
        shape = list(tensors[0].shape)
        (self.folder / "inputs.bin").write_bytes(b"".join(np.asarray(one, "<f4", "C").tobytes() for one in tensors))
        answer = self._order({"do": "run", "shape": shape, "inputs": "inputs.bin", "outputs": "outputs.bin"})
        try:
            shapes = [tuple(int(size) for size in one) for one in answer["outputs"]]
        except (KeyError, TypeError, ValueError):
            raise ImportRefused(f"{self.python} did not say what the model gives") from None
        return read_answers(self.folder / "outputs.bin", shapes, len(tensors))

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        told = {"kind": self.kind, "source": str(self.source.resolve()), **order}
        return child.run(self.python, _HERE / SIDES[self.kind][1], self.folder, told, TIMEOUT_S)


def read_answers(path: Path, shapes: Sequence[tuple[int, ...]], count: int) -> Answers:
    """`count` times float32 outputs of these shapes, one behind the other. Raises ImportRefused."""
    if any(not 0 < size < 1 << 31 for shape in shapes for size in shape) or sum(map(len, shapes)) > 1000:
        raise ImportRefused("the program says that its outputs have impossible shapes")
    sizes = [int(np.prod([float(size) for size in shape])) for shape in shapes]
    wanted = 4 * sum(sizes) * count
    if not 0 < wanted <= MAX_OUTPUTS:
        raise ImportRefused(f"the program gives {wanted} bytes of answers; 1 to {MAX_OUTPUTS} are allowed")
    if not path.is_file() or path.is_symlink() or path.stat().st_size != wanted:
        raise ImportRefused("the program gave other answers than it said")
    ends = np.cumsum([0, *sizes])
    rows = np.frombuffer(path.read_bytes(), "<f4").reshape(count, sum(sizes))
    return [[row[ends[i] : ends[i + 1]].reshape(shape) for i, shape in enumerate(shapes)] for row in rows]
