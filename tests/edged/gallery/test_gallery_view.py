"""From rows to answers: who is known, from which similarity on, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.gallery.records import Enrolled
from edged.gallery.view import View, threshold
from edgekit.packages import EmbeddingSpec
from edgekit.services.definition import Gallery as Rules
from edgekit.vision.embedding import UNKNOWN

MODEL, WIDTH = "faces@1 abc", 16
SPEC = EmbeddingSpec(width=WIDTH)


def vector(identity: int, look: int = 0, noise: float = 0.15) -> np.ndarray:
    base = np.random.default_rng(identity).normal(size=WIDTH)
    found = base / np.linalg.norm(base)
    found = found + noise * np.random.default_rng([identity, look, 7]).normal(size=WIDTH) / np.sqrt(WIDTH)
    return np.asarray(found / np.linalg.norm(found), np.float32)


def rows(identities: range, looks: int = 2, model: str = MODEL, name: str = "p{}") -> dict[str, Enrolled]:
    return {
        f"{model}{identity}-{look}{name}": Enrolled(
            identity=name.format(identity),
            model=model,
            embedding=vector(identity, look).astype("<f4").tobytes(),
            at=1.0,
        )
        for identity in identities
        for look in range(looks)
    }


def test_an_empty_gallery_knows_nobody_and_says_so() -> None:
    view = View({}, 0, MODEL, SPEC, Rules())
    answer = view.recognise(vector(1))
    assert (answer.label, answer.margin) == (UNKNOWN, 0.0)
    assert view.sentence() == "Nobody is enrolled, so everybody is unknown."


def test_whoever_is_enrolled_is_known_and_strangers_are_not() -> None:
    view = View(rows(range(200)), 0, MODEL, SPEC, Rules(false_accept_rate=0.01))
    assert view.threshold.source == "certified"
    for identity in range(0, 200, 20):
        assert view.recognise(vector(identity, look=9)).label == f"p{identity}"
    strangers = [view.recognise(vector(identity)).label for identity in range(1000, 1400)]
    assert sum(label != UNKNOWN for label in strangers) / len(strangers) <= 0.03
    assert "At most 0.01 of strangers are taken for somebody (90% sure, by 400 comparisons)" in view.sentence()


def test_the_certified_rate_holds_on_strangers_that_were_never_brought() -> None:
    """Ten galleries, each with strangers of its own: the share that is taken for somebody stays at the rate."""
    taken = []
    for number in range(10):
        people = rows(range(number * 1000, number * 1000 + 30), name="p{}")
        brought = rows(range(number * 1000 + 100, number * 1000 + 400), looks=1, name="")
        view = View({**people, **brought}, 0, MODEL, SPEC, Rules(false_accept_rate=0.05))
        assert view.threshold.source == "certified"
        found = [view.recognise(vector(10_000_000 + number * 1000 + one)).label for one in range(200)]
        taken.append(sum(label != UNKNOWN for label in found) / len(found))
    assert float(np.mean(taken)) <= 0.05


def test_pictures_of_another_model_are_left_out_and_counted() -> None:
    view = View({**rows(range(3)), **rows(range(3, 5), model="old@1 x")}, 2, MODEL, SPEC, Rules(threshold=0.8))
    assert (view.identities, view.pictures) == (3, 6)
    assert view.recognise(vector(4)).label == UNKNOWN
    assert "Enrolled with another model, to be enrolled anew: 4 pictures." in view.sentence()
    assert "sealed with another key of the device: 2 pictures." in view.sentence()


def test_a_row_of_zeros_or_of_another_width_spoils_nothing() -> None:
    zero = Enrolled(identity="Z", model=MODEL, embedding=np.zeros(WIDTH, "<f4").tobytes(), at=1.0)
    short = Enrolled(identity="S", model=MODEL, embedding=b"\0" * 8, at=1.0)
    nan = Enrolled(identity="N", model=MODEL, embedding=np.full(WIDTH, np.nan, "<f4").tobytes(), at=1.0)
    view = View({**rows(range(3)), "z": zero, "s": short, "n": nan}, 0, MODEL, SPEC, Rules(threshold=0.8))
    assert view.identities == 3 and view.recognise(vector(1, look=5)).label == "p1"


def test_broken_strangers_spoil_nothing() -> None:
    bad = Enrolled(identity="", model=MODEL, embedding=np.zeros(WIDTH, "<f4").tobytes(), at=1.0)
    view = View({**rows(range(3)), "b": bad}, 0, MODEL, SPEC, Rules())
    assert view.identities == 3


@pytest.mark.parametrize(
    ("impostors", "spec", "rules", "source", "value"),
    [
        ([0.2] * 300, SPEC, Rules(threshold=0.7), "fixed", 0.7),
        ([0.2] * 300, EmbeddingSpec(width=4, threshold=0.5), Rules(), "certified", 0.2),
        ([0.2] * 20, EmbeddingSpec(width=4, threshold=0.5), Rules(), "package", 0.5),
        ([0.2, 0.4], SPEC, Rules(), "provisional", 0.7),
        ([], SPEC, Rules(), "none", None),
        ([-0.9] * 300, SPEC, Rules(), "certified", 0.01),
    ],
)
def test_where_the_threshold_comes_from(
    impostors: list[float], spec: EmbeddingSpec, rules: Rules, source: str, value: float | None
) -> None:
    found = threshold(impostors, spec, rules)
    assert found.source == source
    assert found.value == (value if value is None else pytest.approx(value, abs=1e-6))
    assert found.trusted == (source in ("fixed", "certified"))


@given(st.lists(st.floats(-1, 1), max_size=400), st.floats(0.01, 0.5))
def test_a_threshold_accepts_no_more_strangers_than_the_rate_allows(impostors: list[float], rate: float) -> None:
    found = threshold(impostors, SPEC, Rules(false_accept_rate=rate))
    if found.source == "certified":
        assert found.value is not None
        assert sum(one >= found.value for one in impostors) <= rate * len(impostors)
    elif found.value is not None:
        assert all(one < found.value or one == 1.0 for one in impostors)
