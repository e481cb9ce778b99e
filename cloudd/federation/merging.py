"""The last state of a job becomes a model package: `python -m cloudd.federation.merging`, order on stdin.

The package has the base's input, labels and proof samples, these pinned anew by the merged model's own answers, and
says in federated/lineage.json where it comes from. It is proved as a device proves it. Personal tensors are the
base's: no device's own ever came here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import msgspec

from cloudd.derived import float_variant, source_of, tools
from cloudd.federation.child import carry_out
from cloudd.federation.errors import FederationError
from cloudd.federation.lineage import LINEAGE, Lineage, Merged, Order
from edgekit import packages, tensors
from edgekit.packages import Manifest, OutputSpec, Package, PackageError, ProofSample, Variant
from edgekit.packages.records import record_bytes
from edgekit.runtimes import ModelError
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, TrainingError, replace_weights
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import ImageError

LABELS_FILE = "labels.txt"
_MAX_BYTES = 16 << 30
_SURE = 0.1  # margin of a proof sample: one nearer to another label says nothing about damage
_TOLERANCE = 0.05


def merge(order: Order) -> Package:
    """Make the package. Raises FederationError, PackageError, ModelError, TrainingError, TensorError, OSError."""
    base = packages.open_package(Path(order.base))
    source = float_variant(base.manifest.variants)
    if source is None:
        raise FederationError(f"{base.ref} has no float32 file any more")
    merged = tensors.load(Path(order.tensors).read_bytes(), _MAX_BYTES)
    out = Path(order.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=out) as name:
        root = Path(name) / "package"
        root.mkdir()
        for file in (MODEL_FILE, WEIGHTS_FILE):
            shutil.copyfile(Path(order.plan) / file, root / file)
        replace_weights(root / WEIGHTS_FILE, merged)
        (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in order.labels or base.labels), "utf-8")
        draft = Manifest(
            name=order.name,
            version=order.version,
            task=base.manifest.task,
            description=f"{base.ref} taught by devices together, sums: {order.job.sums} ({order.job.name})",
            labels=LABELS_FILE,
            input=base.manifest.input,
            output=OutputSpec(),
            detection=base.manifest.detection,
            variants=[Variant(file=MODEL_FILE)],
        )
        pinned = _held if base.manifest.task == "detection" else _pinned
        manifest = msgspec.structs.replace(draft, samples=pinned(base, root, draft))
        lineage = Lineage(
            source=source_of(base, source),
            job=order.job,
            state=order.state,
            personal=order.personal,
            figures=order.figures,
            tools=tools(),
        )
        (root / LINEAGE).parent.mkdir()
        (root / LINEAGE).write_bytes(record_bytes(lineage))
        package = packages.seal_package(root, manifest)
        kind = Detector if base.manifest.task == "detection" else Classifier
        with closing(kind.load(package)) as proved:
            proved.prove()
        return packages.adopt(root, out)


def _pinned(base: Package, root: Path, draft: Manifest) -> list[ProofSample]:
    """The base's pictures with what the merged model says about them, as far as it is sure."""
    opened = packages.seal_package(root, draft)
    (root / packages.MANIFEST_NAME).unlink()
    samples: list[ProofSample] = []
    with closing(Classifier.load(opened)) as model:
        for file in dict.fromkeys(one.file for one in base.manifest.samples):
            data = base.path(file).read_bytes()
            try:
                answer = model.classify(data)
            except ImageError as error:
                raise FederationError(f"the proof sample {file} of {base.ref} cannot be read: {error}") from None
            if answer.margin < _SURE:
                continue
            place = f"samples/{len(samples)}{Path(file).suffix}"
            (root / "samples").mkdir(exist_ok=True)
            (root / place).write_bytes(data)
            samples.append(
                ProofSample(file=place, label=answer.label, score=round(answer.score, 3), tolerance=_TOLERANCE)
            )
    return samples


def _held(base: Package, root: Path, draft: Manifest) -> list[ProofSample]:
    """The samples of a base that is a detector, of each picture all of them, where they hold of the merged one, too."""
    samples: list[ProofSample] = []
    for file in dict.fromkeys(one.file for one in base.manifest.samples):
        mine = [one for one in base.manifest.samples if one.file == file]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(base.path(file).read_bytes())
        opened = packages.seal_package(root, msgspec.structs.replace(draft, samples=[*samples, *mine]))
        (root / packages.MANIFEST_NAME).unlink()
        try:
            with closing(Detector.load(opened)) as model:
                model.prove()
        except ModelError:
            (root / file).unlink()
        else:
            samples += mine
    return samples


def main() -> int:
    """Entry point: 0 and a directory, or 1 and a sentence."""

    def work(order: Order) -> Merged:
        return Merged(directory=str(merge(order).root))

    refusals = FederationError, PackageError, ModelError, TrainingError, tensors.TensorError
    return carry_out(Order, work, lambda error: Merged(error=error), refusals)


if __name__ == "__main__":
    sys.exit(main())
