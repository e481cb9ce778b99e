"""What a classifier needs: labels, cross entropy, and the logits of a larger classifier to learn from.

The larger network answers exactly what the device's sees, changes and mixtures of pictures included
(`cloudd.compress.distil`), so no label is needed there and none is overfitted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from cloudd.compress.distil import Lessons
from cloudd.compress.maker import Training
from cloudd.retraining.material import AUGMENTATION, Answers, Material, Pace, Rung
from edgekit.architectures.network import LOGITS
from edgekit.autodiff.interfaces import Loss
from edgekit.autodiff.losses import CrossEntropy, Distillation
from edgekit.messages.retraining import TaughtPicture
from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, Variant
from edgekit.training import MODEL_FILE, ClassifierEvaluator, Evaluator, Examples, ForwardModel, LabelledExamples
from edgekit.vision.classification import Classifier

SMALL_SIDE = 96
"""Pixels of the input up to which it is looked at whole."""
LADDER: tuple[Rung, ...] = (
    ("tiny_cnn", 0.5),
    ("tiny_cnn", 1.0),
    ("tiny_cnn", 2.0),
    ("tiny_cnn", 4.0),
    ("resnet18", 0.25),
    ("resnet18", 0.5),
    ("resnet18", 1.0),
    ("resnet18", 2.0),
)
"""For the small inputs of patches a wide `tiny_cnn`: a ResNet-18 looks at every fourth pixel only before it begins, and
needs many pictures (`cloudd.train.recipe`)."""
SMOOTHING, TEMPERATURE = 0.05, 2.0


class LabelMaterial(Material):
    """Of a classifier."""

    teaching_pace = Pace(shown=24_000, batch=16, peak=3e-3)
    """As `cloudd train`."""
    learning_pace = Pace(shown=40_000, batch=32, peak=3e-3)
    """As `cloudd compress` teaches; changes and mixtures make many pictures of few. On `pcb-bare` a third of the rate
    left 4 points behind after 24,000 pictures."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Material."""
        return (self.request.logits,)

    @property
    def made_outputs(self) -> tuple[str, ...]:
        """See Material."""
        return (LOGITS,)

    def ladder(self) -> Sequence[Rung]:
        """See Material."""
        small = max(self.spec.width, self.spec.height) <= SMALL_SIDE
        return [one for one in LADDER if small or one[0] != "tiny_cnn"]

    def examples(
        self, pictures: tuple[TaughtPicture, ...], spec: InputSpec, image: str, changed: bool
    ) -> LabelledExamples:
        """See Material."""
        return LabelledExamples(
            self.pictures(pictures, spec),
            np.array([one.label for one in pictures], np.int64),
            len(self.request.labels),
            seed=self.request.seed,
            augmentation=AUGMENTATION if changed else None,
            image=image,
        )

    def lessons(self, answers: Answers) -> Examples:
        """See Material."""
        training = Training(
            source=self.folder / MODEL_FILE,
            output=self.request.logits,
            spec=self.spec,
            count=len(self.teaching),
            read=self.reader(self.teaching),
            seconds=0.0,  # the plan is the job's own
            progress=lambda step, done, total: None,
        )
        return Lessons(training, lambda batch: answers(batch)[0], self.request.image)

    def evaluator(self, forward: ForwardModel, spec: InputSpec, image: str, outputs: tuple[str, ...]) -> Evaluator:
        """See Material."""
        chosen = self.examples(self.choosing, spec, image, changed=False)
        return ClassifierEvaluator(forward, chosen, output=outputs[0], image=image, score="loss")

    def loss(self, outputs: tuple[str, ...]) -> Loss:
        """See Material."""
        return CrossEntropy(output=outputs[0], smoothing=SMOOTHING)

    def taught_loss(self) -> Loss:
        """See Material."""
        return Distillation(hard=CrossEntropy(output=self.request.logits), temperature=TEMPERATURE, share=1.0)

    def draft(self, root: Path, description: str = "") -> Manifest:
        """See Material."""
        request = self.request
        return Manifest(
            name=request.name,
            version=request.version,
            description=description,
            labels=self.write_labels(root),
            input=request.input,
            output=OutputSpec(kind="logits", name=request.logits),
            variants=[Variant(file=MODEL_FILE)],
        )

    def _loaded(self, package: Package) -> tuple[list[str], Collection[str]]:
        with closing(Classifier.load(package)) as model:
            return [one.name for one in model.session.inputs], [one.name for one in model.session.outputs]
