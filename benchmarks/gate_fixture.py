"""Writes tests/fixtures/pcb_bare_logits.npz: real logits on which the gate's promises are tested.

    EDGED_REAL_DATA=... python -m benchmarks.gate_fixture OUT.npz

For calibration and test patches of pcb-bare (boards that the models have not seen): the logits of both models and the
true label, and again for a part of the patches after the scene has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pictures, train_pair
from edgekit.packages import Package
from edgekit.vision import images
from edgekit.vision.classification import Classifier

CLEAN, CHANGED = 1400, 300  # patches; more would not fit into 60 kB


def faded(x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Out of focus, less contrast, noise: the edge becomes unsure. `x`: pixels as -1..1."""
    for _ in range(2):
        padded = np.pad(x, 1, mode="reflect")
        rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
        x = 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    return x * 0.7 + 0.2 + 0.15 * rng.standard_normal(x.shape)


def dark(x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A lamp fails: the edge becomes wrong and stays sure, which no score shows."""
    return x * 0.6 - 0.3


SCENES: dict[str, Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.float64]]] = {
    "faded_": faded,
    "dark_": dark,
}


def changed(file: bytes, scene: str, rng: np.random.Generator) -> bytes:
    pixels = SCENES[scene](pictures.decode(file) / 127.5 - 1, rng)
    return images.encode_png(np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8))


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
    labels = np.array([item.label for item in chosen], np.uint8)
    files = {"": [item.data for item in chosen]}
    files |= {scene: [changed(item.data, scene, rng) for item in chosen[:CHANGED]] for scene in SCENES}
    arrays: dict[str, Any] = {"labels": labels}  # of the changed scenes: the first ones
    for part, pictures_of_it in files.items():
        for side, package in (("edge", pair.edge), ("cloud", pair.cloud)):
            arrays[part + side] = logits(package, pictures_of_it)
        edge, cloud = (arrays[part + side].argmax(axis=1) for side in ("edge", "cloud"))
        truth = labels[: len(edge)]
        print(
            f"{part.rstrip('_') or 'clean'}: edge {np.mean(edge == truth):.1%}, cloud {np.mean(cloud == truth):.1%}, "
            f"differing {np.mean(edge != cloud):.1%}"
        )
    out = Path(sys.argv[1])
    np.savez_compressed(out, **arrays)
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
