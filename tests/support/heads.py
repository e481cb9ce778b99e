"""A classifier with proof pictures, as a head of one round needs it, and pictures of three labels."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import cv2
import msgspec
import numpy as np

from edgekit import packages
from edgekit.architectures import Spec, build, input_spec
from edgekit.packages import Manifest, Package, ProofSample, Variant
from edgekit.training import MODEL_FILE, write_model
from edgekit.vision.classification import Classifier

KNOWN = ("good", "bad")
"""Labels of the base."""
LABELS = (*KNOWN, "void")
HEAD = '[plan.strategy]\nstrategy = "additive-head"\n'


def picture(place: int, number: int, label: str) -> bytes:
    """A noisy square: bright, dull, or with a dark hole; each device has its own light."""
    rng = np.random.default_rng([place, number, len(label)])
    image = rng.normal(60 + 4 * place, 8, (32, 32))
    image[8:24, 8:24] += {"good": 100, "bad": 30, "void": 100}[label]
    if label == "void":
        image[12:20, 12:20] -= 120
    return bytes(cv2.imencode(".png", np.clip(image, 0, 255).astype(np.uint8))[1])


def head_package(folder: Path, samples: bool = True) -> Package:
    """An untrained network of some thousand weights with the labels KNOWN."""
    folder.mkdir(parents=True)
    spec = Spec(architecture="tiny_cnn", classes=2, input_width=32, input_height=32, channels=1, width=0.5, seed=1)
    write_model(build(spec).model, folder)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in KNOWN))
    manifest = Manifest(
        name="small", version="1", labels="labels.txt", input=input_spec(spec), variants=[Variant(file=MODEL_FILE)]
    )
    if not samples:
        return packages.seal_package(folder, manifest)
    draft = packages.seal_package(folder, manifest)
    (folder / packages.MANIFEST_NAME).unlink()
    (folder / "samples").mkdir()
    proved = []
    with closing(Classifier.load(draft)) as model:
        for number, label in enumerate((*KNOWN, *KNOWN)):
            data = picture(9, number, label)
            said = model.classify(data)
            (folder / f"samples/{number}.png").write_bytes(data)
            proved.append(
                ProofSample(file=f"samples/{number}.png", label=said.label, score=round(said.score, 3), tolerance=0.05)
            )
    return packages.seal_package(folder, msgspec.structs.replace(manifest, samples=proved))
