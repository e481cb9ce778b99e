"""What samples are worth, and hashes of pictures that look alike."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sample_bench import facts

from edged.samples import worth
from edged.samples.records import Source
from edged.samples.thumbprint import difference_hash
from edgekit.vision.images import encode_jpeg, encode_png

HASHES = st.integers(0, (1 << 64) - 1)
SOURCES: list[Source] = ["asked", "audit", "disputed", "doubtful", "random", "import"]


@given(HASHES, st.sets(st.integers(0, 63), max_size=worth.NEAR_BITS))
def test_hashes_that_differ_in_a_few_bits_share_a_band(first: int, bits: set[int]) -> None:
    second = first
    for bit in bits:
        second ^= 1 << bit
    assert worth.difference(first, second) == len(bits)
    assert any(one == two for one, two in zip(worth.bands(first), worth.bands(second), strict=True))


@given(st.sampled_from(SOURCES), st.floats(0, 1), st.booleans(), st.integers(1, 10_000))
def test_a_label_of_people_outweighs_everything_that_is_unlabelled(
    source: Source, margin: float, near: bool, count: int
) -> None:
    best_unlabelled = worth.value(facts(source=source, margin=margin, cloud="bad"), near, 0) + worth.rarity(count)
    least_labelled = worth.value(facts(source="random"), False, 2)
    assert least_labelled >= best_unlabelled
    assert worth.value(facts(source="random"), False, 3) > least_labelled


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_rarity_is_a_share_that_falls_with_the_class(one: int, two: int) -> None:
    assert 0 < worth.rarity(max(one, two)) <= worth.rarity(min(one, two)) <= 1


def test_a_closer_answer_and_a_disagreement_teach_more() -> None:
    assert worth.doubt(facts(margin=0.1), False) > worth.doubt(facts(margin=0.8), False)
    assert worth.doubt(facts(cloud="bad"), False) == worth.doubt(facts(cloud="good"), False) + 1
    assert worth.doubt(facts(margin=0.1), True) == worth.doubt(facts(margin=0.1), False) - 1
    assert worth.doubt(facts(source="random", margin=0.0), False) == 0


def test_a_picture_that_is_encoded_again_or_a_little_brighter_has_nearly_the_same_hash() -> None:
    rng = np.random.default_rng(1)
    picture = cv2.resize(rng.integers(0, 200, (12, 16), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    first = difference_hash(encode_png(picture))
    for other in (encode_jpeg(picture, 80), encode_png(picture + np.uint8(20))):
        assert worth.difference(first, difference_hash(other)) <= worth.NEAR_BITS
    assert worth.difference(first, difference_hash(encode_png(np.ascontiguousarray(picture[:, ::-1])))) > 16
