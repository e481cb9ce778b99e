"""Seals a model package together with proof samples that the model itself gets right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgekit.packages import Manifest, Package, ProofSample, seal_package
from edgekit.vision.classification import Classifier


def seal_with_proofs(target: Path, draft: Manifest, candidates: Iterable[tuple[bytes, str]]) -> Package:
    """Seal the package in `target`, with the first candidate (picture, label) of every class that it answers rightly.

    The files that `draft` names must be in `target` already. Raises PackageError or ModelError.
    """
    manifest = target / "package.toml"
    samples = target / "samples"
    samples.mkdir(exist_ok=True)
    for old in [manifest, *samples.iterdir()]:
        old.unlink(missing_ok=True)
    classifier = Classifier.load(seal_package(target, msgspec.structs.replace(draft, samples=[], files={})))
    proofs: dict[str, ProofSample] = {}
    for data, label in candidates:
        if label not in proofs and classifier.classify(data).label == label:
            suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
            file = f"samples/{len(proofs)}.{suffix}"
            (target / file).write_bytes(data)
            proofs[label] = ProofSample(file=file, label=label)
    classifier.close()
    manifest.unlink()
    return seal_package(target, msgspec.structs.replace(draft, samples=list(proofs.values()), files={}))
