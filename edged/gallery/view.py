"""What a gallery's rows amount to: identities that can be told apart, and from which similarity on one is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edged.gallery.records import Enrolled, counted
from edgekit.gates.binomial import smallest_n
from edgekit.heads.gallery import Gallery, Match
from edgekit.heads.unknown import calibrate_acceptance
from edgekit.packages import EmbeddingSpec
from edgekit.services.definition import Gallery as Rules
from edgekit.vision.classification import Classified
from edgekit.vision.embedding import Embedding, identified, stranger

MAX_IMPOSTORS = 2000
"""Comparisons that a threshold is calibrated with; more cost time and hardly make it better."""
_LEAST = 0.01  # threshold: whoever is as unlike as that is nobody


@dataclass(frozen=True)
class Threshold:
    """From which similarity on somebody is known, None: nobody ever is; and where that comes from."""

    value: float | None
    source: Literal["fixed", "certified", "package", "provisional", "none"]
    sentence: str

    @property
    def trusted(self) -> bool:
        """Whether it says enough to refuse a picture that looks like somebody else."""
        return self.source in ("fixed", "certified")


class View:
    """A gallery as it is now. Never changes; may be used from several threads."""

    def __init__(
        self,
        rows: Mapping[str, Enrolled],
        closed: int,
        model: str,
        spec: EmbeddingSpec,
        rules: Rules,
        known: Threshold | None = None,
    ) -> None:
        """`rows` by id, the oldest first; `closed` is how many more do not open; `model` is what embeds now.

        `known` is a threshold that holds on for now; None: it is calibrated, which compares strangers with everybody.
        """
        self.width, self.model = spec.width, model
        mine = {id: row for id, row in rows.items() if row.model == model}
        vectors = {id: found for id, row in mine.items() if (found := _vector(row, spec.width)) is not None}
        self.ids = _by_identity({id: mine[id] for id in vectors})
        """By identity, the oldest first; "" are strangers."""
        self._gallery = Gallery(spec.width, 1.0)
        for name, ids in self.ids.items():
            if name:
                self._gallery.enrol(name, np.stack([vectors[id] for id in ids]))
        self._strangers = np.stack([vectors[id] for id in self.ids[""]]) if self.ids.get("") else None
        self.threshold = known or threshold(self._impostors(), spec, rules)
        if self.threshold.value is not None:
            self._gallery.threshold = self.threshold.value
        self._sentence = _told(self, len(rows) - len(mine), closed + len(mine) - len(vectors))

    @property
    def identities(self) -> int:
        """How many there are."""
        return len(self._gallery)

    @property
    def pictures(self) -> int:
        """That they were enrolled by."""
        return sum(len(ids) for name, ids in self.ids.items() if name)

    def sentence(self) -> str:
        """Where it stands, for people."""
        return self._sentence

    def match(self, embedding: Embedding) -> Match | None:
        """The nearest identity; None in an empty gallery."""
        return self._gallery.match(embedding[np.newaxis])[0] if len(self._gallery) else None

    def recognise(self, embedding: Embedding) -> Classified:
        """The answer to a picture."""
        found = self.match(embedding)
        if found is None or self.threshold.value is None:
            return stranger()
        return identified(found, self.threshold.value)

    def _impostors(self) -> list[float]:
        """Similarities of strangers: enrolled ones to the others, and those whose pictures were brought for that."""
        found = self._gallery.impostors(MAX_IMPOSTORS)
        if self._strangers is not None and len(self._gallery):
            chosen = self._strangers[-MAX_IMPOSTORS:]
            for part in np.array_split(chosen, -(-len(chosen) // 64)):
                found += [one.similarity for one in self._gallery.match(part)]
        return found


def threshold(impostors: Sequence[float], spec: EmbeddingSpec, rules: Rules) -> Threshold:
    """The threshold, by what is known of strangers; see docs/identity.md for the order."""
    if rules.threshold is not None:
        return Threshold(rules.threshold, "fixed", f"The threshold {rules.threshold:g} is the definition's.")
    rate, needed = rules.false_accept_rate, smallest_n(rules.false_accept_rate, 1 - rules.confidence)
    if len(impostors) >= needed:
        found = calibrate_acceptance(impostors, rate, 1 - rules.confidence)
        value = min(max(found.threshold, _LEAST), 1.0)
        text = (
            f"At most {rate:.3g} of strangers are taken for somebody ({rules.confidence:.0%} sure, by {len(impostors)} "
            f"comparisons): the threshold is {value:.3f}."
        )
        return Threshold(value, "certified", text)
    missing = (
        f"{len(impostors)} comparisons with strangers are known and {needed} are needed to certify a rate of {rate:g}: "
        "enrol more, or bring pictures of strangers."
    )
    if spec.threshold is not None:
        return Threshold(spec.threshold, "package", f"The threshold {spec.threshold:g} is the package's. {missing}")
    if impostors:
        value = min(max((1.0 + max(impostors)) / 2, _LEAST), 1.0)
        text = f"The threshold {value:.3f} lies half-way from the most alike strangers to equality. {missing}"
        return Threshold(value, "provisional", text)
    return Threshold(None, "none", f"Nobody can be told from a stranger yet, so everybody is unknown. {missing}")


def _told(view: View, foreign: int, closed: int) -> str:
    people, pictures = counted(view.identities, "identity", "identities"), counted(view.pictures, "picture")
    said = [f"{people} by {pictures}. {view.threshold.sentence}"]
    if not view.identities:
        said = ["Nobody is enrolled, so everybody is unknown."]
    if foreign:
        said.append(f"Enrolled with another model, to be enrolled anew: {counted(foreign, 'picture')}.")
    if closed:
        said.append(f"Damaged, or sealed with another key of the device: {counted(closed, 'picture')}.")
    return " ".join(said)


def _by_identity(rows: Mapping[str, Enrolled]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for id, row in rows.items():
        found.setdefault(row.identity, []).append(id)
    return found


def _vector(row: Enrolled, width: int) -> NDArray[np.float32] | None:
    """None for a row that was sealed right and holds no embedding all the same."""
    values = np.frombuffer(row.embedding, "<f4").astype(np.float32)
    whole = values.size == width and np.isfinite(values).all() and float(np.linalg.norm(values)) > 0.5
    return values if whole else None
