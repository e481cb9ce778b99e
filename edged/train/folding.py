"""A candidate of a package that carries its un-folded checkpoint: learned un-folded, served folded, carried on in both.

What was learned lies in the checkpoint's folder, where the next job finds it; the file that serves is made from it by
folding anew, so that a candidate is as fast as its base. Both must give the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import onnx

from edgekit.packages import CHECKPOINT_FOLDER, CheckpointSpec, Package, Variant
from edgekit.runtimes import ModelError, Session, SessionOptions
from edgekit.training import MODEL_FILE, write_model
from edgekit.training.folded import LIMIT, difference, fold
from edgekit.vision.images import ImageError, decode
from edgekit.vision.model import open_variant, picture_shape, sample_bytes
from edgekit.vision.preprocess import prepare

_SAMPLES, _NOISE = 8, 4
"""Pictures on which both forms are compared: what pictures do not show may show on noise."""


def write_folded(base: Package, write: Callable[[Path], None], root: Path) -> CheckpointSpec | None:
    """Let `write` put what was learned into `root`, or, where `base` has a checkpoint, both forms of it.

    Returns the table of the candidate's manifest. Raises TrainingError, OSError.
    """
    if base.manifest.checkpoint is None:
        write(root)
        return None
    folder = root / CHECKPOINT_FOLDER
    folder.mkdir()
    write(folder)
    write_model(fold(onnx.load(str(folder / MODEL_FILE))), root)
    return CheckpointSpec(file=f"{CHECKPOINT_FOLDER}/{MODEL_FILE}")


def check_folded(base: Package, candidate: Package, served: Session) -> None:
    """Compare both forms of a candidate on its base's samples and on noise; one without a checkpoint has only one form.

    `served` is a session of its own file. Raises ModelError where an output differs by more than LIMIT.
    """
    manifest = candidate.manifest
    if manifest.checkpoint is None:
        return
    spec, wanted = manifest.input, served.inputs[0]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, picture_shape(spec), np.uint8) for _ in range(_NOISE)]
    for file in list(dict.fromkeys(one.file for one in base.manifest.samples))[:_SAMPLES]:
        with suppress(ImageError):  # whoever proves the package says so
            images.append(decode(sample_bytes(base, file), spec.colour))
    _, unfolded = open_variant(candidate, SessionOptions(threads=1), Variant(file=manifest.checkpoint.file))
    with closing(unfolded):
        for image in images:
            tensor = prepare(image, spec, wanted)
            both = [session.run({session.inputs[0].name: tensor}) for session in (served, unfolded)]
            worst = max(difference(one, other) for one, other in zip(*both, strict=True))
            if not worst <= LIMIT:
                raise ModelError(
                    f"the candidate does not answer as its un-folded checkpoint does: an output differs by "
                    f"{worst:.2g} of its largest value, {LIMIT:g} is allowed"
                )
