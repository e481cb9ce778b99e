"""What a centre-point detector needs: boxes, their loss, and the maps of a larger detector to learn from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np

from cloudd.retraining.centres import TaughtBoxes, TaughtCentres
from cloudd.retraining.errors import Unteachable
from cloudd.retraining.material import AUGMENTATION, Answers, Material, Pace, Rung
from edgekit.architectures.detector import STRIDE
from edgekit.architectures.network import HEAT, OFFSET, SIZE
from edgekit.autodiff.interfaces import Loss
from edgekit.autodiff.losses import CentrePointLoss
from edgekit.messages.retraining import TaughtPicture
from edgekit.packages import DetectionSpec, InputSpec, Manifest, Package, Variant
from edgekit.training import MODEL_FILE, BoxedExamples, CentrePointEvaluator, Evaluator, Examples, ForwardModel
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Truth

LADDER: tuple[Rung, ...] = tuple(("centre_point", width) for width in (1.0, 1.5, 2.0, 3.0, 4.0))
CHANGES = msgspec.structs.replace(AUGMENTATION, rotation=2.0)
"""The upright box around a turned one is larger than the object."""


class BoxMaterial(Material):
    """Of a detector. The larger one has cells of STRIDE pixels, so the device's must have them, too."""

    teaching_pace = Pace(shown=24_000, batch=8, peak=4e-3)
    """As `cloudd train`."""
    learning_pace = Pace(shown=24_000, batch=8, peak=4e-3)

    @property
    def outputs(self) -> tuple[str, str, str]:
        """See Material."""
        heat, size, offset = self._spec_of_request.outputs
        return heat, size, offset

    @property
    def made_outputs(self) -> tuple[str, str, str]:
        """See Material."""
        return HEAT, SIZE, OFFSET

    @property
    def _spec_of_request(self) -> DetectionSpec:
        spec = self.request.detection
        assert spec is not None, "only a detector's request comes here"
        return spec

    def ladder(self) -> Sequence[Rung]:
        """See Material."""
        return LADDER

    def examples(
        self, pictures: tuple[TaughtPicture, ...], spec: InputSpec, image: str, changed: bool
    ) -> BoxedExamples:
        """See Material."""
        return BoxedExamples(
            self.pictures(pictures, spec),
            [_truth(one) for one in pictures],
            len(self.request.labels),
            STRIDE,
            seed=self.request.seed,
            augmentation=CHANGES if changed else None,
            image=image,
        )

    def lessons(self, answers: Answers) -> Examples:
        """See Material."""
        image = self.request.image
        return TaughtBoxes(self.examples(self.teaching, self.spec, image, changed=True), answers, image)

    def evaluator(self, forward: ForwardModel, spec: InputSpec, image: str, outputs: tuple[str, ...]) -> Evaluator:
        """See Material."""
        heat, size, offset = outputs
        chosen = self.examples(self.choosing, spec, image, changed=False)
        return CentrePointEvaluator(
            forward, chosen, spec.width, spec.height, outputs=(heat, size, offset), image=image, score="ap"
        )

    def loss(self, outputs: tuple[str, ...]) -> CentrePointLoss:
        """See Material."""
        heat, size, offset = outputs
        return CentrePointLoss(heat=heat, size=size, offset=offset)

    def taught_loss(self) -> Loss:
        """See Material."""
        return TaughtCentres(self.loss(self.outputs))

    def draft(self, root: Path, description: str = "") -> Manifest:
        """See Material."""
        request = self.request
        return Manifest(
            name=request.name,
            version=request.version,
            task="detection",
            description=description,
            labels=self.write_labels(root),
            input=request.input,
            detection=request.detection,
            variants=[Variant(file=MODEL_FILE)],
        )

    def _loaded(self, package: Package) -> tuple[list[str], Collection[str]]:
        spec = self.request.input
        cells = spec.height // STRIDE, spec.width // STRIDE
        with closing(Detector.load(package)) as model:
            assert model.session is not None, "only a template has none"
            inputs, outputs = model.session.inputs, {one.name: one for one in model.session.outputs}
        for name, channels in zip(self.outputs, (len(self.request.labels), 2, 2), strict=True):
            if name in outputs and not outputs[name].accepts((1, channels, *cells)):
                raise Unteachable(
                    f"the map {name[:100]} has no cells of {STRIDE} pixels with the channels first, as those of the "
                    "larger detector have"
                )
        return [one.name for one in inputs], outputs


def _truth(picture: TaughtPicture) -> Truth:
    boxes = picture.boxes or ()
    sides = np.array([(one.left, one.top, one.right, one.bottom) for one in boxes], np.float64).reshape(-1, 4)
    return Truth(sides, np.array([one.label for one in boxes], np.int64))
