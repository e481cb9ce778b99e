"""A variant of a package as a model in memory that looks at one picture, and the package's own samples beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes import ModelError, Session, SessionOptions, TensorInfo, installed, open_session
from edgekit.vision.images import Colour, ImageError
from edgekit.vision.preprocess import check_input, reduced_size

if TYPE_CHECKING:
    from edgekit.packages import InputSpec, Package, Variant

MAX_SAMPLE_BYTES = 64 << 20
"""Bytes of one proof sample."""
TEMPLATE = "template"
"""The runtime of a golden picture, which has no session."""

M = TypeVar("M")
T = TypeVar("T")


class PictureModel:
    """One loaded variant of a package whose model takes one picture and has one output that counts."""

    TAKEN_FOR: ClassVar[str] = "a model"
    """What an error calls it."""

    def __init__(self, package: Package, variant: Variant, session: Session) -> None:
        """Use `load`; this is for a session that was opened elsewhere. Raises ModelError as `load` does."""
        manifest = package.manifest
        if len(session.inputs) != 1:
            raise ModelError(f"the model has {len(session.inputs)} inputs; {self.TAKEN_FOR} takes one picture")
        self.package, self.variant, self.session = package, variant, session
        self.labels: list[str] = list(package.labels)
        self._input_spec: InputSpec = manifest.input
        self._input = find_tensor(session.inputs, manifest.input.name, "input")
        self._output = find_tensor(session.outputs, manifest.output.name, "output")
        self._output_at = session.outputs.index(self._output)
        check_input(self._input_spec, self._input)

    @property
    def colour(self) -> Colour:
        """Order of the channels that the package wants."""
        return self._input_spec.colour

    @classmethod
    def load(cls, package: Package, options: SessionOptions | None = None, variant: Variant | None = None) -> Self:
        """Open `variant`, or else the first one that was compiled for no special chip and whose runtime is installed.

        Raises ModelError if a file cannot be loaded or does not fit its manifest.
        """
        return loaded(cls, package, options, variant)

    def reduce_to(self, share: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int] | None:
        """See preprocess.reduced_size."""
        return reduced_size(self._input_spec, share)

    def close(self) -> None:
        """Give the session's memory back."""
        self.session.close()

    def _run(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """The output for a batch that is as the model wants it. Raises ModelError."""
        return self.session.run({self._input.name: tensor})[self._output_at]


# --- opening ----------------------------------------------------------------------------------------------------------


def first_variant(package: Package) -> Variant:
    """The first one that was compiled for no special chip and can be run here, else the first of all.

    Raises ModelError if the package is half of a split model.
    """
    variants = package.manifest.variants
    if not variants:
        raise ModelError(f"{package.ref} is the {package.manifest.task} of a split model and serves nothing by itself")
    runnable = (one for one in variants if one.target is None and (one.runtime == TEMPLATE or installed(one.runtime)))
    return next(runnable, variants[0])


def open_variant(package: Package, options: SessionOptions | None, variant: Variant | None) -> tuple[Variant, Session]:
    """`variant`, or else `first_variant`, opened.

    Raises ModelError if the file cannot be loaded, or the package is half of a split model.
    """
    chosen = variant or first_variant(package)
    told = replace(options or SessionOptions(), declared=declared_input(package.manifest.input))
    return chosen, open_session(package.path(chosen.file), chosen.runtime, told, files_beside(package, chosen))


def loaded(
    make: Callable[[Package, Variant, Session], M],
    package: Package,
    options: SessionOptions | None,
    variant: Variant | None,
) -> M:
    """What `make` makes of an opened variant, whose session is closed if it raises; see `open_variant`."""
    chosen, session = open_variant(package, options, variant)
    try:
        return make(package, chosen, session)
    except BaseException:
        session.close()
        raise


def find_tensor(tensors: Sequence[TensorInfo], name: str, kind: str) -> TensorInfo:
    """The tensor of this name, or the first one for "". Raises ModelError if there is none."""
    if not tensors:
        raise ModelError(f"the model has no {kind}")
    if not name:
        return tensors[0]
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise ModelError(f'the model has no {kind} "{name}"; it has {", ".join(t.name for t in tensors)}')


def declared_input(spec: InputSpec) -> TensorInfo:
    """The input tensor as the package describes it."""
    channels = 1 if spec.colour == "grey" else 3
    sides = (channels, spec.height, spec.width) if spec.layout == "nchw" else (spec.height, spec.width, channels)
    return TensorInfo(spec.name or "input", (1, *sides), spec.dtype)


def files_beside(package: Package, variant: Variant) -> list[str]:
    """The package's files in or below the variant's own folder, relative to it: what external data may name."""
    folder = PurePosixPath(variant.file).parent
    paths = (PurePosixPath(path) for path in package.manifest.files)
    return [str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder)]


# --- samples ----------------------------------------------------------------------------------------------------------


def picture_shape(spec: InputSpec) -> tuple[int, ...]:
    """Of decoded pixels that already have the input's size: HxW if it is grey, else HxWx3."""
    return (spec.height, spec.width) if spec.colour == "grey" else (spec.height, spec.width, 3)


def blank(spec: InputSpec) -> NDArray[np.uint8]:
    """A black picture of the input's size: what proves a package without samples."""
    return np.zeros(picture_shape(spec), np.uint8)


def sample_bytes(package: Package, file: str) -> bytes:
    """The encoded picture of a proof sample. Raises ModelError if it is too large."""
    path = package.path(file)
    if path.stat().st_size > MAX_SAMPLE_BYTES:
        raise ModelError(f"the sample {file} is larger than {MAX_SAMPLE_BYTES} bytes")
    return path.read_bytes()


def look_at_sample(package: Package, file: str, look: Callable[[bytes], T]) -> T:
    """What `look` gives of a proof sample. Raises ModelError for a file that is too large, or that no picture is in."""
    data = sample_bytes(package, file)
    try:
        return look(data)
    except ImageError as error:
        raise ModelError(f"the sample {file} cannot be used: {error}") from error
