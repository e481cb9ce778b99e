"""Trains the demo's two models on the line simulator and packages them under examples/models (under 1 MB together).

    python -m examples.train_models --python .venv-bench/bin/python

The training itself needs PyTorch, which is no dependency of this project: name an interpreter that has torch, onnx,
numpy and opencv with --python. The packages that come out are committed, so nobody needs this to run the demo.

Both networks see joints of many imaginary plants (examples.line_simulator.line.varied_look). The edge's is a quarter of
the resolution and a thirtieth of the parameters of the cloud's: the gap between them is what the demo is about.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from edgekit.packages import InputSpec, Manifest, OutputSpec, Variant
from examples.line_simulator.joints import CLASSES, SIDE
from examples.line_simulator.line import boards, training_set
from examples.packaging import seal_with_proofs

ROOT = Path(__file__).resolve().parent / "models"
SMALL_SIDE = 32


def package(name: str, side: int, onnx: Path, description: str) -> None:
    """Write one package: the model, its labels, and one proof sample a class."""
    root = ROOT / name
    root.mkdir(parents=True, exist_ok=True)
    (root / "model.onnx").write_bytes(onnx.read_bytes())
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in CLASSES))
    draft = Manifest(
        name=name,
        version="1",
        task="classification",
        description=description,
        labels="labels.txt",
        input=InputSpec(
            width=side,
            height=side,
            colour="rgb",
            layout="nchw",
            dtype="float32",
            resize="stretch",
            interpolation="area",
            mean=[127.5],
            scale=[1 / 127.5],
        ),
        output=OutputSpec(kind="logits"),
        variants=[Variant(file="model.onnx", runtime="onnxruntime", precision="fp32")],
    )
    joints = [joint for board in islice(boards("north", 99), 50) for joint in board.joints]
    seal_with_proofs(root, draft, ((joint.jpeg(), joint.label) for joint in joints if joint.severity > 0.6))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--count", type=int, default=16000, help="training pictures (default 16000)")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, count, seed in (("train", arguments.count, 1), ("test", 3000, 2)):
            print(f"drawing {count} joints to {name} on", flush=True)
            pictures, labels = training_set(count, seed)
            np.savez(f"{folder}/{name}.npz", pictures=pictures, labels=labels)
        command = [arguments.python, str(Path(__file__).with_name("train_networks.py")), folder, str(arguments.epochs)]
        subprocess.run(command, check=True, env={**os.environ, "SMALL_SIDE": str(SMALL_SIDE)})
        package("solder-small", SMALL_SIDE, Path(folder, "small.onnx"), "Solder joints, for the edge: 32x32 pixels")
        package("solder-large", SIDE, Path(folder, "large.onnx"), "Solder joints, for the cloud: 64x64 pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
