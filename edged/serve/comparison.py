"""A new model's answers to the samples that its predecessor's package pins, before it takes over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgekit.messages import Comparison
from edgekit.packages import Package, PackageError, open_package
from edgekit.runtimes import ModelError
from edgekit.vision.classification import MAX_SAMPLE_BYTES, Classifier
from edgekit.vision.images import ImageError

MAX_SAMPLES = 200
MAX_S = 10.0
"""Longest time for one service: the swap waits for it."""
MAX_TOLD = 5
"""Differences that are put into words."""


def compare(
    service: str, classifier: Classifier, directory: Path, clock: Callable[[], float] = time.monotonic
) -> Comparison | None:
    """How far the new model agrees with what the package in `directory` promises; None if it pins no samples.

    The new package's own samples are no part of this: they have been proved, or it would not be here.
    """
    try:
        previous = open_package(directory, verify=False)
    except (PackageError, OSError):
        return None  # it has been removed meanwhile, so there is nothing to compare with
    samples = previous.manifest.samples[:MAX_SAMPLES]
    until = clock() + MAX_S
    done = agreed = 0
    change = 0.0
    differing: list[str] = []
    for sample in samples:
        if clock() > until:
            break
        try:
            answer = classifier.classify(_read(previous, sample.file))
        except (ImageError, ModelError, PackageError, OSError) as error:
            done += 1
            differing.append(f"{sample.file} cannot be answered: {error}")
            continue
        done += 1
        if answer.label == sample.label:
            agreed += 1
            change = max(change, abs(answer.score - sample.score) if sample.score is not None else 0.0)
        else:
            differing.append(f'{sample.file} was "{sample.label}" and is now "{answer.label}" ({answer.score:.2f})')
    if not done:
        return None
    return Comparison(
        service=service,
        model=classifier.package.ref,
        previous=previous.ref,
        samples=done,
        agreed=agreed,
        differing=differing[:MAX_TOLD],
        score_change=round(change, 4),
    )


def _read(package: Package, file: str) -> bytes:
    path = package.path(file)
    if path.stat().st_size > MAX_SAMPLE_BYTES:
        raise ModelError(f"it is larger than {MAX_SAMPLE_BYTES} bytes")
    return path.read_bytes()
