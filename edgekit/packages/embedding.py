"""The table of package.toml that belongs to task "embedding": how long an embedding is, and when two show the same.

The model's output (`output.name`, `output.kind = "none"`) is a vector of `width` numbers; its length does not count,
because embeddings are compared by the cosine between them. There are no labels: whom an embedding shows is known by the
gallery on the device (`edged gallery`), not by the model.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class EmbeddingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[embedding]`. `threshold` is the cosine from which two pictures usually show the same identity.

    A device uses it until its own gallery certifies a better one; without it a device begins with what its gallery
    tells, see docs/identity.md.
    """

    width: Annotated[int, Meta(ge=2, le=8192)]
    threshold: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None


def embedding_fault(task: str, spec: EmbeddingSpec | None, labels: str, kind: str) -> str:
    """What is wrong with the table beyond single values, as a sentence; "" if nothing is.

    A package of this task without the table is one of a release before it: a model that is served as it is.
    """
    if spec is None:
        return ""
    if task != "embedding":
        return f'[embedding] belongs to task = "embedding", not to "{task}"'
    if labels:
        return '"labels" is set; an embedding model has none, because the gallery on the device knows the identities'
    if kind != "none":
        return f'"output.kind" is "{kind}"; the output of an embedding model is a vector, so "none" belongs there'
    return ""
