"""A small and a large model for a data set, trained once, packaged as users would package theirs, and kept in a cache.

Training needs PyTorch, which no daemon needs. It therefore lives in an interpreter of its own:

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install torch==2.13.0 numpy onnx

EDGED_BENCH_PYTHON names another interpreter. The cache is ~/.cache/edged-bench (EDGED_BENCH_CACHE); its key covers the
training data, the trainer's source and the options, so a stale model is never used, and a model is trained once.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.pictures import SIDE, Dataset, input_spec
from edgekit.packages import Manifest, Package, ProofSample, Variant, open_package, seal_package
from edgekit.vision import images
from edgekit.vision.classification import Classifier

_HERE = Path(__file__).resolve().parent
_TRAINING = "training.json"

Options = dict[str, Any]

SIDES = ("edge", "cloud")

FULL: dict[str, tuple[Options, Options]] = {
    "pcb-bare": (
        {"net": "tiny", "width": 20, "seconds": 150, "epochs": 1000},
        {"net": "residual", "width": 16, "seconds": 240, "epochs": 1000, "rate": 0.002},
    ),
    "solder-tht": (
        {"net": "tiny", "width": 12, "seconds": 45, "epochs": 200},
        {"net": "residual", "width": 12, "seconds": 60, "epochs": 120, "rate": 0.002},
    ),
}
"""Options of the small and the large model, see `benchmarks.trainer`. Seconds are CPU seconds of one thread."""

QUICK: dict[str, tuple[Options, Options]] = {
    name: ({**small, "seconds": 2, "wall": 3}, {**large, "seconds": 4, "wall": 6, "width": 8})
    for name, (small, large) in FULL.items()
}


@dataclass(frozen=True)
class Pair:
    """`edge` and `cloud`: sealed packages. `training`: for each of them its options and what the trainer said."""

    edge: Package
    cloud: Package
    training: dict[str, Any]


def pair(dataset: Dataset, *, quick: bool = False) -> Pair:
    """The two packages of a data set. `quick` takes the full ones from the cache, or else trains for 6 to 9 s.

    Raises SystemExit with a sentence if the training interpreter is missing or training fails.
    """
    chosen = FULL[dataset.name]
    if quick and not all(
        _is_trained(_folder(dataset, side, options)) for side, options in zip(SIDES, chosen, strict=True)
    ):
        chosen = QUICK[dataset.name]
    folders = {side: _folder(dataset, side, options) for side, options in zip(SIDES, chosen, strict=True)}
    wanted = {side: options for side, options in zip(SIDES, chosen, strict=True) if not _is_trained(folders[side])}
    if wanted:
        _train(dataset, folders, wanted)
    training = {side: json.loads((folder / _TRAINING).read_text("utf-8")) for side, folder in folders.items()}
    edge, cloud = (open_package(folders[side] / "package") for side in SIDES)
    return Pair(edge, cloud, training)


def bench_python() -> Path:
    """The interpreter with PyTorch."""
    path = Path(os.environ.get("EDGED_BENCH_PYTHON") or _HERE.parent / ".venv-bench" / "bin" / "python")
    if not path.is_file():
        raise SystemExit(
            f"There is no training interpreter at {path}. Make one: python3 -m venv .venv-bench && "
            ".venv-bench/bin/pip install torch==2.13.0 numpy onnx; or name yours in EDGED_BENCH_PYTHON."
        )
    return path


def _folder(dataset: Dataset, side: str, options: Options) -> Path:
    key = hashlib.sha256((_HERE / "trainer.py").read_bytes())
    key.update(dataset.train_x.tobytes() + dataset.train_y.tobytes())
    key.update(json.dumps([dataset.labels, options], sort_keys=True).encode())
    root = Path(os.environ.get("EDGED_BENCH_CACHE") or Path.home() / ".cache" / "edged-bench")
    return root / f"{dataset.name}-{side}-{key.hexdigest()[:16]}"


def _is_trained(folder: Path) -> bool:
    return (folder / _TRAINING).is_file()


def _train(dataset: Dataset, folders: dict[str, Path], wanted: dict[str, Options]) -> None:
    """Train the wanted sides in one process, package them, and move each into its folder when it is complete."""
    root = next(iter(folders.values())).parent
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".training-", dir=root) as name:
        staged = Path(name)
        data = staged / "data.npz"
        np.savez(data, x=dataset.train_x, y=dataset.train_y, classes=len(dataset.labels), rotatable=dataset.rotatable)
        command = ["nice", "-n", "10", str(bench_python()), str(_HERE / "trainer.py"), str(data)]
        for side, options in wanted.items():
            (staged / side / "package").mkdir(parents=True)
            command += [str(staged / side / "package" / "model.onnx"), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"Training failed ({' '.join(command[3:5])}):\n{done.stderr[-2000:]}")
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for (side, options), result in zip(wanted.items(), told, strict=True):
            _package(dataset, staged / side / "package", side)
            (staged / side / _TRAINING).write_text(json.dumps({**options, **result}, indent=2), encoding="utf-8")
            try:
                (staged / side).rename(folders[side])
            except OSError:  # another run was faster; its model is as good
                if not _is_trained(folders[side]):
                    raise


def _package(dataset: Dataset, root: Path, side: str) -> Package:
    """Seal the package; its proof is a drawn picture, because no real one may be packed anywhere."""
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in dataset.labels), encoding="utf-8")
    drawn = np.indices((SIDE, SIDE)).sum(axis=0).astype(np.uint8)
    drawn[20:40, 10:50] = 230
    (root / "proof.png").write_bytes(images.encode_png(drawn))
    manifest = Manifest(
        name=f"{dataset.name}-{side}",
        version="1",
        description=f"Benchmark model for {dataset.name}",
        labels="labels.txt",
        input=input_spec(),
        variants=[Variant(file="model.onnx")],
    )
    classifier = Classifier.load(seal_package(root, manifest))
    try:
        said = classifier.classify((root / "proof.png").read_bytes())
    finally:
        classifier.close()
    proof = ProofSample(file="proof.png", label=said.label, score=round(float(said.score), 4))
    return seal_package(root, msgspec.structs.replace(manifest, samples=[proof]))
