"""The name of a training job: what a checkpoint belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec


def job_name(settings: Iterable[msgspec.Struct], digests: Iterable[str]) -> str:
    """SHA-256 in hex over settings and digests (of the dataset version, the train graph, the model it starts from).

    Anything that changes what a training computes belongs in there: a checkpoint goes on with the same job only.
    """
    total = hashlib.sha256(b"edgekit training job 1\0")
    for struct in settings:
        total.update(
            type(struct).__name__.encode() + b"\0" + msgspec.json.encode(struct, order="deterministic") + b"\0"
        )
    for digest in digests:
        total.update(digest.encode() + b"\0")
    return total.hexdigest()
