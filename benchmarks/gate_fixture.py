"""Writes tests/fixtures/pcb_bare_logits.npz: real logits on which the gate's promises are tested.

    EDGED_REAL_DATA=... python -m benchmarks.gate_fixture OUT.npz

For calibration and test patches of pcb-bare (boards that the models have not seen): the logits of both models and the
true label, and again for a part of the patches after the camera has drifted (blur, less contrast, noise).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pictures, train_pair
from edgekit.packages import Package
from edgekit.vision import images
from edgekit.vision.classification import Classifier

CLEAN, DRIFTED = 1500, 450  # patches; more would not fit into 60 kB
STRENGTH = 0.6


def drifted(patch: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene change of the drift tests: 3x3 blur, contrast 0.6, brighter, noise; mixed with the clean patch."""
    x = patch.astype(np.float64) / 127.5 - 1
    padded = np.pad(x, 1, mode="reflect")
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    blurred = 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    changed = blurred * 0.6 + 0.2 + 0.25 * rng.standard_normal(x.shape)
    mixed = (1 - STRENGTH) * x + STRENGTH * changed
    return np.clip(np.rint((mixed + 1) * 127.5), 0, 255).astype(np.uint8)


def logits(package: Package, files: list[bytes]) -> NDArray[np.float16]:
    classifier = Classifier.load(package)
    name = classifier.session.inputs[0].name
    try:
        return np.concatenate([classifier.session.run({name: classifier.tensor(f)})[0] for f in files]).astype(
            np.float16
        )
    finally:
        classifier.close()


def main() -> None:
    dataset = pictures.load("pcb-bare")
    pair = train_pair.pair(dataset)
    rng = np.random.default_rng(0)
    items = [*dataset.calibration, *dataset.test]
    chosen = [items[i] for i in rng.permutation(len(items))[:CLEAN]]
    clean = [item.data for item in chosen]
    changed = [images.encode_png(drifted(pictures.decode(f), rng)) for f in clean[:DRIFTED]]
    labels = np.array([item.label for item in chosen], np.uint8)
    arrays: dict[str, Any] = {"labels": labels, "drift_labels": labels[:DRIFTED]}
    for side, package in (("edge", pair.edge), ("cloud", pair.cloud)):
        arrays[side], arrays[f"drift_{side}"] = logits(package, clean), logits(package, changed)
    out = Path(sys.argv[1])
    np.savez_compressed(out, **arrays)
    for part, truth in (("", labels), ("drift_", labels[:DRIFTED])):
        right = {side: float(np.mean(arrays[part + side].argmax(1) == truth)) for side in ("edge", "cloud")}
        print(
            part or "clean",
            right,
            "differing",
            np.mean(arrays[f"{part}edge"].argmax(1) != arrays[f"{part}cloud"].argmax(1)),
        )
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
