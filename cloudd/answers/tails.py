"""The tail of a split model: turns the features that a device's head made into the whole model's answer."""

from __future__ import annotations

import numpy as np

from edgekit.packages import Package
from edgekit.runtimes import ModelError, Session, SessionOptions, open_session
from edgekit.runtimes.base import shape_text
from edgekit.splitting import features
from edgekit.vision.classification import Classified, read_answer


class Tail:
    """One cut of a tail package, loaded. Only classifiers are split so far."""

    def __init__(self, package: Package, session: Session) -> None:
        """Use `load`; this is for a session that was opened elsewhere. Raises ModelError as `load` does."""
        assert package.manifest.tail is not None
        output = package.manifest.output
        self.of = package.manifest.tail.of
        """name@version of the whole model, in whose name this answers."""
        self._session, self._kind, self._labels = session, output.kind, list(package.labels)
        if self._kind == "none":
            raise ModelError(f'{package.ref} has the output kind "none", so it answers nothing')
        names = [tensor.name for tensor in session.outputs]
        if not names or output.name not in ("", *names):
            raise ModelError(f'{package.ref} has no output "{output.name}"; it has {", ".join(names) or "none"}')
        self._output_at = names.index(output.name) if output.name else 0
        for tensor in session.inputs:
            if tensor.dtype not in features.DTYPES or None in tensor.shape:
                raise ModelError(
                    f'the input "{tensor.name}" of {package.ref} is {tensor.dtype} of shape '
                    f"{shape_text(tensor.shape)}; features have a plain type and a fixed shape"
                )

    @classmethod
    def load(cls, package: Package, cut: str, options: SessionOptions | None = None) -> Tail:
        """Open the tail of one cut. Raises ModelError if the package has no such cut, or its file cannot be loaded."""
        spec = package.manifest.tail
        chosen = spec.cut(cut) if spec is not None else None
        if chosen is None:
            raise ModelError(f'{package.ref} has no tail "{cut}"')
        session = open_session(package.path(chosen.file), "onnxruntime", options or SessionOptions())
        try:
            return cls(package, session)
        except BaseException:
            session.close()
            raise

    def prove(self) -> None:
        """Run it once on zeros: a model that cannot run at all shows here, and the first real features meet a warm
        session. That it continues its head was proved when both were made. Raises ModelError.
        """
        blank = {
            tensor.name: np.zeros([size for size in tensor.shape if size is not None], tensor.dtype)
            for tensor in self._session.inputs
        }
        self._session.run(blank)

    def answer(self, frame: bytes) -> Classified:
        """What the whole model says of the picture behind these features.

        `frame` is edgekit.splitting.features.encode's (hostile bytes). Raises FeatureError unless it holds just the
        tensors that this tail takes, ModelError for a failing model.
        """
        outputs = self._session.run(features.decode(frame, self._session.inputs))
        return read_answer(outputs[self._output_at], self._session.outputs[self._output_at], self._kind, self._labels)

    def close(self) -> None:
        """Give the session's memory back."""
        self._session.close()
