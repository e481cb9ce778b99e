"""A small and a large model for a data set, trained once, packaged as users would package theirs, and kept in a cache.

Training needs PyTorch, which no daemon needs. It therefore lives in an interpreter of its own:

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install torch==2.13.0 numpy onnx

EDGED_BENCH_PYTHON names another interpreter. The cache is ~/.cache/edged-bench (EDGED_BENCH_CACHE); its key covers the
training data, the trainer's source and the options, so a stale model is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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

FULL: dict[str, list[dict[str, Any]]] = {
    "pcb-bare": [
        {"net": "tiny", "width": 16, "seconds": 100, "epochs": 1000},
        {"net": "residual", "width": 16, "seconds": 240, "epochs": 1000, "rate": 0.002},
    ],
    "solder-tht": [
        {"net": "tiny", "width": 4, "seconds": 20, "epochs": 60},
        {"net": "residual", "width": 12, "seconds": 60, "epochs": 120, "rate": 0.002},
    ],
}
"""Options of the small and the large model, see `benchmarks.trainer`. Seconds are CPU seconds of one thread."""

QUICK: dict[str, list[dict[str, Any]]] = {
    name: [{**small, "seconds": 4}, {**large, "seconds": 8, "width": 8}] for name, (small, large) in FULL.items()
}


@dataclass(frozen=True)
class Pair:
    """`edge` and `cloud`: sealed packages. `training`: what the trainer said of each, with its options."""

    edge: Package
    cloud: Package
    training: dict[str, Any]
    cached: bool


def pair(dataset: Dataset, *, quick: bool = False) -> Pair:
    """The two packages of a data set. `quick` prefers a full pair from the cache and else trains for 12 s.

    Raises SystemExit with a sentence if the training interpreter is missing or training fails.
    """
    full = _folder(dataset, FULL[dataset.name])
    if (full / "training.json").is_file() or not quick:
        return _open_or_train(dataset, full, FULL[dataset.name])
    return _open_or_train(dataset, _folder(dataset, QUICK[dataset.name]), QUICK[dataset.name])


def bench_python() -> Path:
    """The interpreter with PyTorch."""
    path = Path(os.environ.get("EDGED_BENCH_PYTHON") or _HERE.parent / ".venv-bench" / "bin" / "python")
    if not path.is_file():
        raise SystemExit(
            f"There is no training interpreter at {path}. Make one: python3 -m venv .venv-bench && "
            ".venv-bench/bin/pip install torch==2.13.0 numpy onnx; or name yours in EDGED_BENCH_PYTHON."
        )
    return path


def _folder(dataset: Dataset, options: list[dict[str, Any]]) -> Path:
    key = hashlib.sha256((_HERE / "trainer.py").read_bytes())
    key.update(Path(__file__).read_bytes().split(b"\nFULL: ")[0])
    key.update(dataset.train_x.tobytes() + dataset.train_y.tobytes())
    key.update(json.dumps([dataset.labels, options], sort_keys=True).encode())
    root = Path(os.environ.get("EDGED_BENCH_CACHE") or Path.home() / ".cache" / "edged-bench")
    return root / f"{dataset.name}-{key.hexdigest()[:16]}"


def _open_or_train(dataset: Dataset, folder: Path, options: list[dict[str, Any]]) -> Pair:
    cached = (folder / "training.json").is_file()
    if not cached:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".training-", dir=folder.parent))
        try:
            _train(dataset, staged, options)
            staged.rename(folder)
        except OSError:  # another run was faster; its models are as good
            if not (folder / "training.json").is_file():
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return Pair(open_package(folder / "edge"), open_package(folder / "cloud"), training, cached)


def _train(dataset: Dataset, folder: Path, options: list[dict[str, Any]]) -> None:
    data = folder / "data.npz"
    np.savez(data, x=dataset.train_x, y=dataset.train_y, classes=len(dataset.labels), rotatable=dataset.rotatable)
    command = [str(bench_python()), str(_HERE / "trainer.py"), str(data)]
    for side, wanted in zip(("edge", "cloud"), options, strict=True):
        (folder / side).mkdir()
        command += [str(folder / side / "model.onnx"), json.dumps(wanted)]
    done = subprocess.run(["nice", "-n", "10", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Training failed ({' '.join(command[:2])}):\n{done.stderr[-2000:]}")
    data.unlink()
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for side in ("edge", "cloud"):
        _package(dataset, folder / side, side)
    training = {
        side: {**wanted, **result} for side, wanted, result in zip(("edge", "cloud"), options, told, strict=True)
    }
    (folder / "training.json").write_text(json.dumps(training, indent=2), encoding="utf-8")


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
