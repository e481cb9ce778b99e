"""The threshold for "unknown" and the gallery that uses it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.heads.gallery import MAX_PICTURES, Gallery
from edgekit.heads.statistics import HeadError
from edgekit.heads.unknown import calibrate_acceptance


@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 2)), min_size=60, max_size=300))
def test_the_threshold_accepts_what_it_says_and_the_bound_holds(impostors: list[float]) -> None:
    found = calibrate_acceptance(impostors, 0.05)
    above = sum(value >= found.threshold for value in impostors)
    assert above == found.accepted
    assert found.bound == pytest.approx(clopper_pearson_upper(above, len(impostors), 0.1))
    assert found.bound <= 0.05


def test_the_false_accept_rate_holds_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        found = calibrate_acceptance(rng.standard_normal(400).tolist(), 0.02)
        broken += bool((rng.standard_normal(20_000) >= found.threshold).mean() > 0.02)
    assert broken <= 200 * 0.1 + 12


def test_too_few_impostors_are_refused_with_the_number_needed() -> None:
    with pytest.raises(HeadError, match="230"):
        calibrate_acceptance([0.1] * 100, 0.01)


def test_an_impostor_without_a_similarity_is_refused() -> None:
    with pytest.raises(HeadError, match="not a number"):
        calibrate_acceptance([float("nan")] * 100, 0.1)


def crowd(people: int, pictures: int, seed: int = 0, noise: float = 0.25) -> list[np.ndarray]:
    """Pictures of each: unit vectors around a direction of their own."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(32) + noise * rng.standard_normal((pictures, 32)) for _ in range(people)]


def filled(threshold: float = 0.6) -> Gallery:
    gallery = Gallery(32, threshold)
    for number, pictures in enumerate(crowd(20, 4)):
        gallery.enrol(f"person {number}", pictures[:3])
    return gallery


def test_an_enrolled_person_is_recognised_and_a_stranger_is_not() -> None:
    gallery = filled()
    for number, pictures in enumerate(crowd(20, 4)):
        (match,) = gallery.match(pictures[3:])
        assert match.name == f"person {number}"
        assert match.known
        assert match.runner_up < match.similarity
    strangers = [gallery.match(pictures)[0] for pictures in crowd(20, 1, seed=7)]
    assert not any(match.known for match in strangers)


def test_who_is_removed_is_not_recognised_any_more() -> None:
    gallery = filled()
    gallery.remove("person 3")
    (match,) = gallery.match(crowd(20, 4)[3][3:])
    assert match.name != "person 3"
    with pytest.raises(HeadError, match="not enrolled"):
        gallery.remove("person 3")


def test_other_people_are_the_impostors_of_a_gallery() -> None:
    gallery = filled()
    assert len(gallery.impostors()) == 60
    assert max(gallery.impostors()) < 0.7


def test_the_pictures_of_one_identity_are_bounded() -> None:
    gallery = Gallery(8, 0.5)
    rng = np.random.default_rng(0)
    gallery.enrol("a", rng.standard_normal((MAX_PICTURES + 9, 8)))
    assert gallery.tensors()["a"].shape == (MAX_PICTURES, 8)


@pytest.mark.parametrize(
    ("name", "embedding", "text"),
    [
        ("", np.ones((1, 8)), "name"),
        ("a\n", np.ones((1, 8)), "name"),
        ("a", np.ones((1, 7)), "8 features"),
        ("a", np.zeros((1, 8)), "zero"),
        ("a", np.full((1, 8), np.nan), "not a number"),
        ("a", np.ones((0, 8)), "no picture"),
    ],
)
def test_what_cannot_be_enrolled_is_refused(name: str, embedding: np.ndarray, text: str) -> None:
    with pytest.raises(HeadError, match=text):
        Gallery(8, 0.5).enrol(name, embedding)


def test_an_empty_gallery_says_so() -> None:
    with pytest.raises(HeadError, match="nobody"):
        Gallery(8, 0.5).match(np.ones((1, 8)))
