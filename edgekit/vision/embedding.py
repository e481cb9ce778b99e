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
from edgekit.runtimes import ModelError, Session, SessionOptions, TensorInfo
from edgekit.runtimes.base import dequantise, shape_text
from edgekit.vision.classification import Classified, find_tensor, open_variant, sample_bytes
from edgekit.vision.images import Colour, ImageError, decode
from edgekit.vision.preprocess import check_input, in_colour, prepare, reduced_size

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


class Embedder:
    """One loaded variant of an embedding package. Methods may be called from several threads."""

    def __init__(self, package: Package, variant: Variant, session: Session) -> None:
        """Use `load`; this is for a session that was opened elsewhere. Raises ModelError as `load` does."""
        manifest = package.manifest
        if manifest.task != "embedding" or manifest.embedding is None:
            raise ModelError(f"{package.ref} has no [embedding], which says how many values an embedding has")
        if len(session.inputs) != 1:
            raise ModelError(f"the model has {len(session.inputs)} inputs; an embedding model takes one picture")
        self.package, self.variant, self.session = package, variant, session
        self.labels: list[str] = []
        self.spec: EmbeddingSpec = manifest.embedding
        self._input_spec = manifest.input
        self._input = find_tensor(session.inputs, manifest.input.name, "input")
        self._output = find_tensor(session.outputs, manifest.output.name, "output")
        self._output_at = session.outputs.index(self._output)
        check_input(self._input_spec, self._input)
        sizes = [size for size in self._output.shape[1:] if size != 1]
        if sizes not in ([self.spec.width], [None]):
            raise ModelError(
                f'the model\'s output "{self._output.name}" is {shape_text(self._output.shape)}, but "embedding.width" '
                f"is {self.spec.width}"
            )

    @property
    def colour(self) -> Colour:
        """Order of the channels that the package wants."""
        return self._input_spec.colour

    @classmethod
    def load(cls, package: Package, options: SessionOptions | None = None, variant: Variant | None = None) -> Embedder:
        """Open `variant`, or else the first one that was compiled for no special chip and whose runtime is installed.

        Raises ModelError if the file cannot be loaded or does not fit its manifest.
        """
        chosen, session = open_variant(package, options, variant)
        try:
            return cls(package, chosen, session)
        except BaseException:
            session.close()
            raise

    def embed(self, data: bytes) -> tuple[Embedding, dict[str, float]]:
        """The embedding of a JPEG or PNG, and how long it took: decode (with pre-processing) and infer, milliseconds.

        Raises ImageError for a bad picture and ModelError for a failing model.
        """
        started = time.perf_counter()
        image = decode(data, self.colour, reduce_to=reduced_size(self._input_spec))
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
            spec = self._input_spec
            size = (spec.height, spec.width) if spec.colour == "grey" else (spec.height, spec.width, 3)
            tensor = prepare(np.zeros(size, np.uint8), spec, self._input)
            self._values(self.session.run({self._input.name: tensor})[self._output_at])
            return 0
        vectors = np.stack([self._sample(sample) for sample in samples])
        for at, sample in enumerate(samples):
            self._prove(at, sample, vectors @ vectors[at])
        return len(samples)

    def close(self) -> None:
        """Give the session's memory back."""
        self.session.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _embed(self, tensor: NDArray[Any]) -> Embedding:
        values = self._values(self.session.run({self._input.name: tensor})[self._output_at])
        length = float(np.linalg.norm(values))
        if length < 1e-12:
            raise ModelError("the model gave an embedding of zeros: it saw nothing in the picture")
        return np.asarray(values / length, np.float32)

    def _values(self, array: NDArray[Any]) -> NDArray[np.float64]:
        return read_embedding(array, self._output, self.spec.width)

    def _sample(self, sample: ProofSample) -> Embedding:
        try:
            return self.embed(sample_bytes(self.package, sample.file))[0]
        except ImageError as error:
            raise ModelError(f"the sample {sample.file} cannot be used: {error}") from error

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
