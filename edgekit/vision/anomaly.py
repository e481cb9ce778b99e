"""An anomaly detector made of a model package and a session: picture in, good or not out, and where.

The answer is a classifier's, so that gate, samples and outputs need no word for it: the package's first label for a
good part, its second for any other. How sure it is follows from the part's score alone, see `probability`: least at the
limit, more the farther the score lies from it on either side. It is no frequency; the gate needs none, because its
certificate is proved on whatever order the margins give.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.heads.anomaly import part_scores
from edgekit.runtimes import ModelError, Session, TensorInfo
from edgekit.runtimes.base import dequantise, shape_text
from edgekit.vision.classification import Classified, check_sample
from edgekit.vision.detection.alignment import Aligner, Grey, Limits, Warp
from edgekit.vision.detection.geometry import placement
from edgekit.vision.images import ImageError, decode, sniff
from edgekit.vision.model import PictureModel, blank, look_at_sample, sample_bytes
from edgekit.vision.preprocess import cropped, fit, in_colour, prepare

if TYPE_CHECKING:
    from edgekit.packages import AnomalySpec, Package, Variant

GOOD, ANOMALOUS = 0, 1
"""Places of the labels."""
MAX_PLACES = 1 << 22
"""Of a map that a model gives."""
MAX_AREAS = 64
"""Areas of one part that are told."""
MIN_CORRELATION = 0.5
"""Below it a picture does not show the part of the reference, as in `edgekit.vision.detection.template`."""


@dataclass(frozen=True, eq=False)
class Heat:
    """The localisation map: how anomalous each place is, and where it lies in the picture."""

    values: NDArray[np.float32]  # [height, width], 0..1, 0.5 at the limit
    to_picture: NDArray[np.float64]  # [2, 3]: (column, row, 1) of the map's edges -> pixel edges of the full picture


@dataclass(frozen=True)
class Area:
    """Neighbouring places at or above the limit."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the full picture
    score: float  # of its worst place, 0.5..1


@dataclass(frozen=True)
class Examined(Classified):
    """A classifier's answer, and what it rests on."""

    part_score: float = 0.0  # in the model's unit; what `limit` is compared with
    heat: Heat | None = None  # None: the part could not be laid over the reference, or the model gives no map
    areas: Sequence[Area] = field(default_factory=tuple)  # of an anomalous part, the worst first


def probability(scores: NDArray[Any], limit: float, spread: float) -> NDArray[np.float64]:
    """1 / (1 + exp(-(score - limit) / spread)): 0.5 at the limit, 0.95 at ln 19 = 2.94 spreads above it."""
    exponent = np.clip((np.asarray(scores, np.float64) - limit) / spread, -500.0, 500.0)
    return np.asarray(1.0 / (1.0 + np.exp(-exponent)), np.float64)


class Registration:
    """Lays parts over a reference picture. May be used from several threads."""

    def __init__(self, reference: NDArray[np.uint8], limits: Limits) -> None:
        """`reference` is a picture at the size of the model's input, grey or in colour."""
        self._aligner = Aligner(grey_of(reference), limits)

    def lay(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Warp, float]:
        """The picture moved onto the reference, the movement (reference -> picture) and their correlation, -1..1."""
        warp, correlation = self._aligner.align(grey_of(picture))
        size = picture.shape[1], picture.shape[0]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(picture, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved, np.uint8), warp, correlation


def grey_of(picture: NDArray[np.uint8]) -> Grey:
    """HxW grey levels of HxW or HxWx3 pixels; the order of the colours hardly matters where two are compared."""
    return picture if picture.ndim == 2 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


class AnomalyDetector(PictureModel):
    """One loaded variant of an anomaly package. Methods may be called from several threads."""

    TAKEN_FOR = "an anomaly model"

    def __init__(self, package: Package, variant: Variant, session: Session) -> None:
        """See PictureModel."""
        manifest = package.manifest
        if manifest.task != "anomaly" or manifest.anomaly is None:
            raise ModelError(f"{package.ref} has no [anomaly], which says from which score on a part is anomalous")
        if len(package.labels) != 2:
            raise ModelError(
                f"{package.ref} has {len(package.labels)} labels; an anomaly package has two, of a good part and of "
                "any other"
            )
        super().__init__(package, variant, session)
        self.spec: AnomalySpec = manifest.anomaly
        self._whole_spec = msgspec.structs.replace(manifest.input, crop=None)  # of what is cut out already
        self._registration = self._register()

    def classify(self, data: bytes) -> Examined:
        """Examine a JPEG or PNG. Raises ImageError for a bad picture and ModelError for a failing model."""
        started = time.perf_counter()
        info = sniff(data)
        image = decode(data, self.colour, reduce_to=self.reduce_to())
        return self._timed(image, (info.width, info.height), started)

    def classify_image(self, image: NDArray[np.uint8]) -> Examined:
        """Examine decoded pixels (uint8, in the colour order of the package's input). Raises ModelError."""
        return self._timed(image, (image.shape[1], image.shape[0]), time.perf_counter())

    def classify_pixels(self, array: NDArray[Any]) -> Examined:
        """As `classify_image`, for raw pixels in one of the orders of `preprocess.in_colour`; ImageError for others."""
        return self.classify_image(in_colour(array, self._input_spec))

    def prove(self) -> int:
        """Check what the package's samples say; returns how many there were.

        A package without samples gets one blank picture instead, as a classifier does. Raises ModelError if an answer
        is not what the package promises.
        """
        samples = self.package.manifest.samples
        if not samples:
            self._score(self._prepared(blank(self._input_spec)))
        for sample in samples:
            answer = look_at_sample(self.package, sample.file, self.classify)
            found = f"(its score is {answer.part_score:.4g}, the limit {self.spec.limit:.4g})"
            check_sample(sample, answer, found)
        return len(samples)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _register(self) -> Registration | None:
        spec = self.spec
        if not spec.reference:
            return None
        try:
            picture = decode(sample_bytes(self.package, spec.reference), self.colour)
        except ImageError as error:
            raise ModelError(f"the reference {spec.reference} cannot be used: {error}") from error
        fitted = fit(cropped(picture, self._input_spec), self._input_spec)
        return Registration(fitted, Limits(spec.max_shift, spec.max_rotation, spec.max_scale))

    def _timed(self, image: NDArray[np.uint8], full: tuple[int, int], started: float) -> Examined:
        fitted = fit(cropped(image, self._input_spec), self._input_spec)
        warp: Warp = np.eye(2, 3)
        correlation = 1.0
        if self._registration is not None:
            fitted, warp, correlation = self._registration.lay(fitted)
        tensor = self._prepared(fitted)
        prepared = time.perf_counter()
        if correlation < MIN_CORRELATION:
            answer = self._unlike(full)
        else:
            scores = self._score(tensor)
            answer = self._answer(scores, self._to_picture(scores, warp, full), full)
        ended = time.perf_counter()
        answer.timings_ms.update(decode=(prepared - started) * 1e3, infer=(ended - prepared) * 1e3)
        return answer

    def _prepared(self, fitted: NDArray[np.uint8]) -> NDArray[Any]:
        """A picture of the input's size as the batch of one that the model wants."""
        return prepare(fitted, self._whole_spec, self._input)

    def _score(self, tensor: NDArray[Any]) -> NDArray[np.float32]:
        """The map [height, width] of one picture. Raises ModelError for what is none."""
        return read_map(self._run(tensor), self._output)

    def _answer(self, scores: NDArray[np.float32], to_picture: NDArray[np.float64], full: tuple[int, int]) -> Examined:
        spec = self.spec
        score = float(part_scores(scores[np.newaxis].astype(np.float64))[0])
        chance = float(probability(np.array(score), spec.limit, spec.spread))
        index = ANOMALOUS if score >= spec.limit else GOOD
        heat = Heat(probability(scores, spec.limit, spec.spread).astype(np.float32), to_picture)
        return Examined(
            label=self.labels[index],
            index=index,
            score=chance if index == ANOMALOUS else 1.0 - chance,
            margin=abs(2.0 * chance - 1.0),
            probabilities=np.array([1.0 - chance, chance], np.float32),
            part_score=score,
            heat=heat if scores.size > 1 else None,
            areas=tuple(areas(heat, full)) if index == ANOMALOUS and scores.size > 1 else (),
        )

    def _unlike(self, full: tuple[int, int]) -> Examined:
        """A picture that does not show the reference's part: reported, and nothing about it is sure."""
        whole = Area((0.0, 0.0, float(full[0]), float(full[1])), 0.5)
        return Examined(
            label=self.labels[ANOMALOUS],
            index=ANOMALOUS,
            score=0.5,
            margin=0.0,
            probabilities=np.full(2, 0.5, np.float32),
            part_score=self.spec.limit,
            areas=(whole,),
        )

    def _to_picture(self, scores: NDArray[np.float32], warp: Warp, full: tuple[int, int]) -> NDArray[np.float64]:
        """From the map through the movement onto the reference, and through crop and resize, to the full picture.

        Edges are meant, not centres: the middle of the first place is (1/2, 1/2), that of the first pixel as well.
        """
        spec = self._input_spec
        place = placement(spec, *full)
        step = np.array([spec.width / scores.shape[1], spec.height / scores.shape[0]])
        matrix = warp[:, :2]
        offset = warp[:, 2] + 0.5 - matrix @ np.array([0.5, 0.5])  # of a warp, pixel centres are whole
        scale, origin = np.array([place.across, place.down]), np.array([place.left, place.top])
        linear = scale[:, np.newaxis] * matrix * step[np.newaxis]
        return np.concatenate([linear, (scale * offset + origin)[:, np.newaxis]], axis=1)


def read_map(array: NDArray[Any], tensor: TensorInfo) -> NDArray[np.float32]:
    """The model's output as a map [height, width]; [1, 1] for a single score.

    Raises ModelError for another shape, more than MAX_PLACES places, NaN, infinity or a score below 0.
    """
    shape = array.shape
    if len(shape) == 4 and 1 in (shape[1], shape[3]):
        shape = (shape[0], *shape[2:]) if shape[1] == 1 else shape[:3]
    elif len(shape) in (1, 2) and array.size == 1:
        shape = (1, 1, 1)
    if len(shape) != 3 or shape[0] != 1 or not 0 < array.size <= MAX_PLACES:
        raise ModelError(f"the model gave {shape_text(array.shape)} values; a map [1, height, width] belongs there")
    values = dequantise(array, tensor)
    if not np.isfinite(values).all():
        raise ModelError("the model gave values that are not numbers (NaN or infinity)")
    if float(values.min()) < 0:
        raise ModelError(f"the model gave the score {values.min():.3g}; distances from what is good are 0 or more")
    return np.asarray(values.reshape(shape[1:]), np.float32)


def areas(heat: Heat, full: tuple[int, int]) -> Iterator[Area]:
    """Connected places at or above the limit as upright boxes in a picture of size `full`, the worst first.

    MAX_AREAS at most; one that lies outside of the picture is left out.
    """
    over = np.asarray(heat.values >= 0.5, np.uint8)
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(over, connectivity=8)
    found = []
    for number in range(1, count):
        left, top, width, height = (int(value) for value in stats[number][:4])
        corners = np.array([[x, y, 1.0] for x in (left, left + width) for y in (top, top + height)])
        placed = corners @ heat.to_picture.T
        low = np.clip(placed.min(axis=0), 0, full)
        high = np.clip(placed.max(axis=0), 0, full)
        if (high > low).all():
            worst = float(heat.values[numbers == number].max())
            found.append(Area((float(low[0]), float(low[1]), float(high[0]), float(high[1])), worst))
    yield from sorted(found, key=lambda one: -one.score)[:MAX_AREAS]


def usual_spread(limit: float, good: NDArray[np.floating]) -> float:
    """The spread with which the median of scores `good` gets a probability of 0.05 of being anomalous.

    At least a hundredth of the limit, so that a line of equal parts does not make every answer certain.
    """
    return max(0.01 * limit, (limit - float(np.median(good))) / math.log(19.0))
