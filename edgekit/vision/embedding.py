"""An embedder made of a model package and a session: picture in, a vector out; and what a gallery makes of the vector.

Whoever is known by a gallery gets the answer of a classifier: a name, or UNKNOWN. `score` is the cosine to the nearest
enrolled picture, for UNKNOWN 1 minus that; `margin` tells how little it would take to change the answer, see
`identified`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.heads.gallery import Match
from edgekit.runtimes import ModelError, Session, TensorInfo
from edgekit.runtimes.base import dequantise, shape_text
from edgekit.vision.classification import Classified
from edgekit.vision.images import decode
from edgekit.vision.model import PictureModel, blank, look_at_sample
from edgekit.vision.preprocess import in_colour, prepare

if TYPE_CHECKING:
    from edgekit.packages import EmbeddingSpec, Package, ProofSample, Variant

UNKNOWN = "unknown"
"""The label of whoever is not known by the gallery."""
KNOWN = "known"
"""What the rules of a service call whoever is, whatever the name."""
RESERVED = (UNKNOWN, KNOWN)
"""Nobody can have these names."""

Embedding = NDArray[np.float32]
"""[width], of unit length."""


class Embedder(PictureModel):
    """One loaded variant of an embedding package. Methods may be called from several threads."""

    TAKEN_FOR = "an embedding model"

    def __init__(self, package: Package, variant: Variant, session: Session) -> None:
        """See PictureModel."""
        manifest = package.manifest
        if manifest.task != "embedding" or manifest.embedding is None:
            raise ModelError(f"{package.ref} has no [embedding], which says how many values an embedding has")
        super().__init__(package, variant, session)
        self.labels = []
        self.spec: EmbeddingSpec = manifest.embedding
        sizes = [size for size in self._output.shape[1:] if size != 1]
        if sizes not in ([self.spec.width], [None]):
            raise ModelError(
                f'the model\'s output "{self._output.name}" is {shape_text(self._output.shape)}, but "embedding.width" '
                f"is {self.spec.width}"
            )

    def embed(self, data: bytes) -> tuple[Embedding, dict[str, float]]:
        """The embedding of a JPEG or PNG, and how long it took: decode (with pre-processing) and infer, milliseconds.

        Raises ImageError for a bad picture and ModelError for a failing model.
        """
        started = time.perf_counter()
        image = decode(data, self.colour, reduce_to=self.reduce_to())
        tensor = prepare(image, self._input_spec, self._input)
        prepared = time.perf_counter()
        found = self._embed(tensor)
        ended = time.perf_counter()
        return found, {"decode": (prepared - started) * 1e3, "infer": (ended - prepared) * 1e3}

    def embed_image(self, image: NDArray[np.uint8]) -> Embedding:
        """The embedding of decoded pixels (uint8, in the colour order of the package's input). Raises ModelError."""
        return self._embed(prepare(image, self._input_spec, self._input))

    def embed_pixels(self, array: NDArray[Any]) -> Embedding:
        """As `embed_image`, for raw pixels in one of the orders of `preprocess.in_colour`; ImageError for others."""
        return self.embed_image(in_colour(array, self._input_spec))

    def prove(self) -> int:
        """Check what the package's samples say; returns how many there were.

        Each picture must be nearer to another one of its label, if there is one, than to any of another label. A
        package without samples gets one blank picture instead, as a classifier does. Raises ModelError.
        """
        samples = self.package.manifest.samples
        if not samples:
            self._values(prepare(blank(self._input_spec), self._input_spec, self._input))
            return 0
        vectors = np.stack([look_at_sample(self.package, one.file, self.embed)[0] for one in samples])
        for at, sample in enumerate(samples):
            self._prove(at, sample, vectors @ vectors[at])
        return len(samples)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _embed(self, tensor: NDArray[Any]) -> Embedding:
        values = self._values(tensor)
        length = float(np.linalg.norm(values))
        if length < 1e-12:
            raise ModelError("the model gave an embedding of zeros: it saw nothing in the picture")
        return np.asarray(values / length, np.float32)

    def _values(self, tensor: NDArray[Any]) -> NDArray[np.float64]:
        return read_embedding(self._run(tensor), self._output, self.spec.width)

    def _prove(self, at: int, sample: ProofSample, cosines: NDArray[np.float32]) -> None:
        samples = self.package.manifest.samples
        own = [i for i, other in enumerate(samples) if i != at and other.label == sample.label]
        others = [i for i, other in enumerate(samples) if other.label != sample.label]
        if not own:
            return
        same = max(float(cosines[i]) for i in own)
        nearest = max(others, key=lambda i: float(cosines[i]), default=None)
        if nearest is not None and float(cosines[nearest]) >= same:
            raise ModelError(
                f'the sample {sample.file} shows "{sample.label}", but is nearer to {samples[nearest].file} '
                f'("{samples[nearest].label}", {cosines[nearest]:.3f}) than to any other of its own ({same:.3f})'
            )
        if sample.score is not None and abs(same - sample.score) > sample.tolerance:
            raise ModelError(
                f"the sample {sample.file} should be as near as {sample.score:.3f} ± {sample.tolerance:.3f} to another "
                f'of "{sample.label}", but the model says {same:.3f}'
            )


def read_embedding(array: NDArray[Any], tensor: TensorInfo, width: int) -> NDArray[np.float64]:
    """The model's output as a vector [width]. Raises ModelError for another number of values, NaN or infinity."""
    if array.size != width or array.shape[:1] not in ((1,), (width,)):
        raise ModelError(f"the model gave {shape_text(array.shape)} values; an embedding of {width} belongs there")
    values = dequantise(array, tensor).reshape(-1).astype(np.float64)
    if not np.isfinite(values).all():
        raise ModelError("the model gave values that are not numbers (NaN or infinity)")
    return values


def identified(match: Match, threshold: float) -> Classified:
    """The answer that a match amounts to; `threshold` is the cosine from which somebody is known, 0..1.

    With s the similarity and r that of the nearest other identity, both cut at 0 (whatever is less alike than that is
    as unlike as can be), the margin is

        known:    min((s - t) / (1 - t), s - r)     it must stay above the threshold, and above the runner-up
        unknown:  (t - s) / t                       it would have to come up to the threshold

    in the manner of `edgekit.vision.detection.boxes.margins_of`. The index is -1: a gallery has no order.
    """
    limit = min(max(threshold, 1e-6), 1.0 - 1e-6)
    similarity, runner_up = min(1.0, max(0.0, match.similarity)), max(0.0, match.runner_up)
    if match.known:
        score, label = similarity, match.name
        margin = min((similarity - limit) / (1.0 - limit), similarity - runner_up)
    else:
        score, label = 1.0 - similarity, UNKNOWN
        margin = (limit - similarity) / limit
    return Classified(
        label=label,
        index=-1,
        score=score,
        margin=min(1.0, max(0.0, margin)),
        probabilities=np.array([similarity, 1.0 - similarity], np.float32),
    )


def stranger() -> Classified:
    """The answer where nobody can be known: an empty gallery, or one without a threshold."""
    return Classified(label=UNKNOWN, index=-1, score=1.0, margin=0.0, probabilities=np.array([0.0, 1.0], np.float32))
