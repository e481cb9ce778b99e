"""A detector made of a model package and what runs it: picture in, boxes in the picture's own pixels out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit import tensors
from edgekit.packages import TemplateSpec
from edgekit.runtimes import ModelError, Session, SessionOptions, TensorInfo
from edgekit.vision.detection.boxes import Detections, clip, iou, margins_of, nms, ranked
from edgekit.vision.detection.geometry import placement, reduction
from edgekit.vision.detection.heads import Candidates, Head, HeadConfig, make_head
from edgekit.vision.detection.template import GoldenPicture
from edgekit.vision.images import Colour, ImageError, decode, sniff
from edgekit.vision.model import MAX_SAMPLE_BYTES, TEMPLATE, blank, first_variant, loaded, look_at_sample
from edgekit.vision.preprocess import check_input, in_colour, prepare, reduced_size

if TYPE_CHECKING:
    from edgekit.packages import DetectionSpec, Package, ProofSample, Variant

MAX_PRIORS_BYTES = 16 << 20
"""Bytes of a file of priors: a million of them."""
_FAR = 1e6  # pixels: beyond every picture, and what a model may give beyond it would overflow an area


@dataclass(frozen=True)
class Detected:
    """What a detector says about one picture."""

    detections: Detections  # pixels of the full picture; every candidate from the package's floor on
    report: float  # the score from which a candidate is reported
    width: int  # of the full picture, pixels
    height: int
    timings_ms: dict[str, float] = field(default_factory=dict)  # decode (with pre-processing), infer (with the boxes)

    @property
    def reported(self) -> Detections:
        """The candidates that count as found; the others are only there to be asked about."""
        return self.detections.above(self.report)


class Detector:
    """One loaded variant of a detection package. Methods may be called from several threads."""

    def __init__(self, package: Package, variant: Variant, session: Session | None) -> None:
        """Use `load`; this is for a session that was opened elsewhere, None for a template. Raises as `load` does."""
        spec = package.manifest.detection
        if package.manifest.task != "detection":
            raise ModelError(f'{package.ref} has the task "{package.manifest.task}", so it is no detector')
        if spec is None:
            raise ModelError(f"{package.ref} has no [detection], which says what head the model has")
        if not package.labels:
            raise ModelError(f"{package.ref} has no labels")
        self.package = package
        self.variant = variant
        self.session = session
        self.spec: DetectionSpec = spec
        self.labels: list[str] = list(package.labels)
        self.report = spec.report
        self._input_spec = package.manifest.input
        self._engine: _Network | GoldenPicture
        if session is not None:
            self._engine = _Network(package, spec, session)
            self.overlap = self._engine.overlap if spec.nms_iou is None else spec.nms_iou
        else:
            self._engine = _golden_picture(package, variant, spec.score_floor)
            self.overlap = 1.0 if spec.nms_iou is None else spec.nms_iou

    @property
    def colour(self) -> Colour:
        """Order of the channels that the package wants."""
        return self._input_spec.colour

    @property
    def compares_whole(self) -> bool:
        """Whether the detector must see the whole picture at once, since it is compared with a golden one."""
        return self.session is None

    @classmethod
    def load(cls, package: Package, options: SessionOptions | None = None, variant: Variant | None = None) -> Detector:
        """Open `variant`, or else the first one that was compiled for no special chip and can be run here.

        Raises ModelError if the file cannot be loaded or does not fit its manifest.
        """
        chosen = variant or first_variant(package)
        if chosen.runtime == TEMPLATE:
            return cls(package, chosen, None)
        return loaded(cls, package, options, chosen)

    def detect(self, data: bytes) -> Detected:
        """Detect in a JPEG or PNG. Raises ImageError for a bad picture and ModelError for a failing model."""
        started = time.perf_counter()
        info = sniff(data)
        image = decode(data, self.colour, reduce_to=self.reduce_to())
        ready = self._engine.prepare(image)
        prepared = time.perf_counter()
        found = self._placed(self._engine.find(ready), image.shape[1], image.shape[0])
        across, down = reduction(info.width, image.shape[1]), reduction(info.height, image.shape[0])
        if (across, down) != (1, 1):
            found = found.placed(found.boxes * np.array([across, down] * 2, np.float32))
        found = found.clipped(info.width, info.height)
        ended = time.perf_counter()
        timings = {"decode": (prepared - started) * 1e3, "infer": (ended - prepared) * 1e3}
        return Detected(found, self.report, info.width, info.height, timings)

    def detect_image(self, image: NDArray[np.uint8]) -> Detections:
        """Detect in decoded pixels (uint8, in the colour order of the package's input). Raises ModelError.

        Boxes are in pixels of `image`, every candidate from the floor on.
        """
        height, width = image.shape[:2]
        found = self._placed(self._engine.find(self._engine.prepare(image)), width, height)
        return found.clipped(width, height)

    def detect_pixels(self, array: NDArray[Any]) -> Detections:
        """As `detect_image`, for raw pixels in one of the orders of `preprocess.in_colour`; ImageError for others."""
        return self.detect_image(in_colour(array, self._input_spec))

    def reduce_to(self, share: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int] | None:
        """See preprocess.reduced_size."""
        return reduced_size(self._input_spec, share)

    def prove(self) -> int:
        """Check what the package's samples say; returns how many there were.

        A package without samples gets one blank picture instead, as a classifier does. Raises ModelError if the model
        does not report what the package promises.
        """
        samples = self.package.manifest.samples
        if not samples:
            self.detect_image(blank(self._input_spec))
        for file in dict.fromkeys(sample.file for sample in samples):
            self._prove(file, [sample for sample in samples if sample.file == file])
        return len(samples)

    def close(self) -> None:
        """Give the session's memory back."""
        if self.session is not None:
            self.session.close()

    def _placed(self, candidates: Candidates, width: int, height: int) -> Detections:
        """After suppression, in pixels of a picture of this size."""
        spec = self.spec
        margins = margins_of(candidates.scores, candidates.seconds, self.report)
        boxes = clip(candidates.boxes, (-_FAR, -_FAR, _FAR, _FAR))
        kept = nms(
            boxes,
            candidates.scores,
            candidates.labels,
            self.overlap,
            class_agnostic=spec.class_agnostic,
            max_candidates=spec.max_candidates,
            max_kept=spec.max_detections,
        )
        placed = placement(self._input_spec, width, height).to_picture(boxes[kept])
        return ranked(placed, candidates.scores[kept], candidates.labels[kept], margins[kept])

    def _prove(self, file: str, samples: Sequence[ProofSample]) -> None:
        found = look_at_sample(self.package, file, self.detect).reported
        free = np.ones(len(found), bool)
        for sample in samples:
            if sample.label not in self.labels:
                raise ModelError(f'the sample {file} has the label "{sample.label}", which the package does not list')
            if sample.box is not None:
                self._prove_box(sample, sample.box, found, free)
            elif (count := int((found.labels == self.labels.index(sample.label)).sum())) != sample.count:
                raise ModelError(
                    f'the sample {file} should have {sample.count} "{sample.label}", but {count} are found'
                )

    def _prove_box(self, sample: ProofSample, box: list[float], found: Detections, free: NDArray[np.bool_]) -> None:
        """Each box of a sample takes the detection that fits it best, and no other box may take that one again."""
        wanted = 0.5 if sample.min_iou is None else sample.min_iou
        mine = free & (found.labels == self.labels.index(sample.label))
        overlaps = np.where(mine, iou(np.array([box]), found.boxes)[0], -1.0)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        place = ", ".join(f"{edge:g}" for edge in box)
        if best < 0 or overlaps[best] < wanted:
            near = f"the nearest has an IoU of {overlaps[best]:.2f}" if mine.any() else "there is none"
            raise ModelError(
                f'the sample {sample.file} should have "{sample.label}" at {place} (IoU {wanted:g}), but {near}'
            )
        free[best] = False
        score = float(found.scores[best])
        if sample.score is not None and abs(score - sample.score) > sample.tolerance:
            raise ModelError(
                f'the sample {sample.file} should have "{sample.label}" at {place} with {sample.score:.3f} '
                f"± {sample.tolerance:.3f}, but the model says {score:.3f}"
            )


class _Network:
    """A model with a session: prepares its input and reads its outputs."""

    def __init__(self, package: Package, spec: DetectionSpec, session: Session) -> None:
        self._spec = package.manifest.input
        if len(session.inputs) != 1:
            raise ModelError(f"the model has {len(session.inputs)} inputs; a detector takes one picture")
        self._input: TensorInfo = session.inputs[0]
        if self._spec.name not in ("", self._input.name):
            raise ModelError(f'the model has no input "{self._spec.name}"; it has {self._input.name}')
        check_input(self._spec, self._input)
        self._session = session
        config = HeadConfig(
            width=self._spec.width,
            height=self._spec.height,
            classes=len(package.labels),
            floor=spec.score_floor,
            outputs=tuple(spec.outputs),
            scores=spec.scores,
            unit=spec.unit,
            strides=tuple(spec.strides),
            priors=_priors(package, spec.priors) if spec.priors else None,
            variances=tuple(spec.variances),
            max_candidates=spec.max_candidates,
        )
        self._head: Head = make_head(spec.head, config, session.outputs)
        self.overlap = self._head.overlap

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        return prepare(image, self._spec, self._input)

    def find(self, tensor: NDArray[Any]) -> Candidates:
        return self._head.decode(self._session.run({self._input.name: tensor}))


def _priors(package: Package, file: str) -> NDArray[np.float32]:
    path = package.path(file)
    if path.stat().st_size > MAX_PRIORS_BYTES:
        raise ModelError(f"{file} is larger than {MAX_PRIORS_BYTES} bytes")
    try:
        found = tensors.load(path.read_bytes(), MAX_PRIORS_BYTES)
    except tensors.TensorError as error:
        raise ModelError(f"{file} cannot be used: {error}") from error
    if "priors" not in found:
        raise ModelError(f'{file} has no tensor "priors"')
    return found["priors"]


def _golden_picture(package: Package, variant: Variant, floor: float) -> GoldenPicture:
    """The golden picture of a template package, ready to compare. Raises ModelError."""
    manifest = package.manifest
    if len(package.labels) != 2:
        raise ModelError(
            f"{package.ref} has {len(package.labels)} labels; a template has two, what is missing and what is too much"
        )
    path = package.path(variant.file)
    if path.stat().st_size > MAX_SAMPLE_BYTES:
        raise ModelError(f"the golden picture {variant.file} is larger than {MAX_SAMPLE_BYTES} bytes")
    try:
        return GoldenPicture(
            decode(path.read_bytes(), "grey"),
            manifest.input,
            manifest.template or TemplateSpec(),
            floor,
        )
    except ImageError as error:
        raise ModelError(f"the golden picture {variant.file} cannot be used: {error}") from error
