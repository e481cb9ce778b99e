"""The table of package.toml that belongs to task "anomaly": from which score on a part is anomalous.

The model's output (`output.name`, `output.kind = "none"`) is a map: how far each place of a part is from what is good,
0 or more, of any unit. It has the shape [1, height, width], with a channel of one before or after it, or it is a single
score. Labels are two: what a good part is called, then an anomalous one.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Score = Annotated[float, Meta(gt=0.0, le=1e12)]


class AnomalySpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[anomaly]`: how a map becomes an answer, and how a part is laid where the model expects it.

    A part's score is the mean of its worst hundredth of places (`edgekit.heads.anomaly.part_scores`). `limit` is the
    score from which a part is anomalous; `spread` is the distance from it over which an answer becomes sure, see
    `edgekit.vision.anomaly.probability`. With `reference`, a picture in the package, every part is laid over that one
    first, within these movements; a part that cannot be is anomalous, and nothing about it is sure.
    """

    limit: Score
    spread: Score
    reference: str = ""
    max_shift: Annotated[float, Meta(ge=0.0, le=256.0)] = 30.0  # pixels of the model's input that a part may lie aside
    max_rotation: Annotated[float, Meta(ge=0.0, le=45.0)] = 15.0  # degrees
    max_scale: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.1  # that it may be larger or smaller, as a share


def anomaly_fault(task: str, spec: AnomalySpec | None, labels: str, kind: str) -> str:
    """What is wrong with the table beyond single values, as a sentence; "" if nothing is.

    A package of this task without the table is one of a release before it: a model that is served as it is.

    `labels` is the manifest's file of labels, `kind` that of its output.
    """
    if spec is None:
        return ""
    if task != "anomaly":
        return f'[anomaly] belongs to task = "anomaly", not to "{task}"'
    if not labels:
        return '"labels" is missing; an anomaly package needs a file of two labels, of a good part and of any other'
    if kind != "none":
        return f'"output.kind" is "{kind}"; the output of an anomaly model is a map, so "none" belongs there'
    moved = [name for name in ("max_shift", "max_rotation", "max_scale") if getattr(spec, name) != _DEFAULTS[name]]
    if moved and not spec.reference:
        return f'"anomaly.{moved[0]}" is set, but there is no "anomaly.reference" that parts are laid over'
    return ""


_DEFAULTS = {"max_shift": 30.0, "max_rotation": 15.0, "max_scale": 0.1}
