"""A classifier made of a model package and a runtime session: picture in, label and margin out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes import ModelError, Session, TensorInfo
from edgekit.runtimes.base import dequantise, shape_text
from edgekit.vision.images import decode
from edgekit.vision.model import PictureModel, blank, look_at_sample
from edgekit.vision.preprocess import in_colour, prepare

if TYPE_CHECKING:
    from edgekit.packages import Package, ProofSample, Variant

_SLACK = 0.01  # how far outside 0..1 a probability may lie: rounding of half-precision and 8-bit outputs


@dataclass(frozen=True)
class Classified:
    """What a model says about one picture."""

    label: str
    index: int  # of the label, 0-based
    score: float  # probability of the label, 0..1
    margin: float  # that minus the probability of the runner-up, 0..1; 1 - margin is the hardness
    probabilities: NDArray[np.float32]  # one per label
    timings_ms: dict[str, float] = field(default_factory=dict)  # decode (with pre-processing), infer
    region: tuple[int, int, int, int] | None = None  # left, top, right, bottom: the part of the picture that decided


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """exp(x_i) / sum exp(x_j) over the last axis; the largest value is subtracted first, so nothing overflows."""
    shifted = np.asarray(logits, np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def read_answer(array: NDArray[Any], tensor: TensorInfo, kind: str, labels: Sequence[str]) -> Classified:
    """Interpret the model's output `array` as one value per label.

    `kind` is "logits" (softmax is applied) or "probabilities" (used as they are, clipped to 0..1; they need not sum to
    exactly 1, as an 8-bit output cannot). Raises ModelError for another number of values, NaN or infinity, or
    probabilities outside 0..1.
    """
    if array.size != len(labels) or array.shape[:1] not in ((1,), (len(labels),)):
        raise ModelError(f"the model gave {shape_text(array.shape)} values for {len(labels)} labels")
    values = dequantise(array, tensor).reshape(-1)
    if not np.isfinite(values).all():
        raise ModelError("the model gave values that are not numbers (NaN or infinity)")
    if kind == "logits":
        probabilities = softmax(values)
    elif values.min() < -_SLACK or values.max() > 1 + _SLACK:
        raise ModelError(
            f"the model's probabilities reach from {values.min():.3g} to {values.max():.3g}; "
            'its package should say kind = "logits"'
        )
    else:
        probabilities = np.clip(values, 0, 1)
    return likeliest(probabilities, labels)


def likeliest(probabilities: NDArray[np.float32], labels: Sequence[str]) -> Classified:
    """The answer that `probabilities`, one per label, amount to."""
    index = int(probabilities.argmax())
    score = float(probabilities[index])
    others = np.delete(probabilities, index)
    margin = score - float(others.max()) if others.size else 1.0
    return Classified(labels[index], index, score, margin, probabilities)


class Classifier(PictureModel):
    """One loaded variant of a classification package. Methods may be called from several threads."""

    TAKEN_FOR = "a classifier"

    def __init__(self, package: Package, variant: Variant, session: Session) -> None:
        """See PictureModel."""
        self._kind = package.manifest.output.kind
        if self._kind == "none":
            raise ModelError(f'{package.manifest.ref} has the output kind "none", so it is no classifier')
        if not package.labels:
            raise ModelError(f"{package.manifest.ref} has no labels")
        super().__init__(package, variant, session)
        sizes = [size for size in self._output.shape[1:] if size != 1]
        if sizes not in ([len(self.labels)], [None]) and not (sizes == [] and len(self.labels) == 1):
            raise ModelError(
                f'the model\'s output "{self._output.name}" is {shape_text(self._output.shape)}, '
                f"but there are {len(self.labels)} labels"
            )

    def classify(self, data: bytes) -> Classified:
        """Classify a JPEG or PNG. Raises ImageError for a bad picture and ModelError for a failing model."""
        started = time.perf_counter()
        tensor = self.tensor(data)
        prepared = time.perf_counter()
        answer = self.classify_tensor(tensor)
        ended = time.perf_counter()
        answer.timings_ms.update(decode=(prepared - started) * 1e3, infer=(ended - prepared) * 1e3)
        return answer

    def tensor(self, data: bytes) -> NDArray[Any]:
        """A JPEG or PNG as the batch of one that the model wants. Raises ImageError and ModelError as `classify`."""
        return self.image_tensor(decode(data, self._input_spec.colour, reduce_to=self.reduce_to()))

    def image_tensor(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Decoded pixels, in the colour order of the package's input, as the batch of one that the model wants."""
        return prepare(image, self._input_spec, self._input)

    def pixels(self, array: NDArray[Any]) -> NDArray[Any]:
        """Raw pixels as the batch of one that the model wants, prepared like a picture with the same pixels.

        `array` is uint8: HxW or HxWx1 (grey), HxWx3 (red, green, blue in this order, whatever the package wants) or
        HxWx4 (with alpha, which is dropped). Raises ImageError for another array.
        """
        return self.image_tensor(in_colour(array, self._input_spec))

    def classify_image(self, image: NDArray[np.uint8]) -> Classified:
        """Classify decoded pixels (uint8, in the colour order of the package's input). Raises ModelError."""
        return self.classify_tensor(self.image_tensor(image))

    def classify_tensor(self, tensor: NDArray[Any]) -> Classified:
        """Classify a batch of one that is already as the model wants it. Raises ModelError."""
        if tensor.shape[:1] != (1,):
            raise ModelError(f"a batch of one is wanted, not {shape_text(tensor.shape)}")
        return read_answer(self._run(tensor), self._output, self._kind, self.labels)

    def prove(self) -> int:
        """Run the package's own samples; returns how many there were.

        A package without samples gets one blank picture instead, so that a model that cannot run at all still shows
        here and the first real picture meets a warm session. Raises ModelError if an answer is not what the package
        promises.
        """
        samples = self.package.manifest.samples
        if not samples:
            self.classify_image(blank(self._input_spec))
        for sample in samples:
            answer = look_at_sample(self.package, sample.file, self.classify)
            check_sample(sample, answer, f"({answer.score:.3f})")
        return len(samples)


def check_sample(sample: ProofSample, answer: Classified, found: str) -> None:
    """Raises ModelError unless `answer` is what the package promises of its sample; `found` says how it came about."""
    if answer.label != sample.label:
        raise ModelError(
            f'the sample {sample.file} should be "{sample.label}", but the model says "{answer.label}" {found}'
        )
    if sample.score is not None and abs(answer.score - sample.score) > sample.tolerance:
        raise ModelError(
            f'the sample {sample.file} should be "{sample.label}" with {sample.score:.3f} '
            f"± {sample.tolerance:.3f}, but the model says {answer.score:.3f}"
        )
