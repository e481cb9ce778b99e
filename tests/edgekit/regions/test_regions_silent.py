from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.regions.silent import SilentRules, SilentTally, audit


def test_silent_frames_are_looked_at_at_their_rate() -> None:
    rng = np.random.default_rng(1)
    rules = SilentRules(rate=0.05)
    looks = [audit(rules, 640, 480, float(u)) for u in rng.random(20_000)]
    assert np.mean([bool(look) for look in looks]) == pytest.approx(0.05, abs=0.006)
    assert {tuple(look) for look in looks} == {(), ((0, 0, 640, 480),)}


def test_no_rate_means_no_look_and_a_full_one_means_always() -> None:
    assert audit(SilentRules(rate=0.0), 640, 480, 0.0) == []
    assert all(audit(SilentRules(rate=1.0), 640, 480, u) for u in (0.0, 0.5, 1 - 2**-53))


@given(
    st.floats(0, 1, exclude_max=True),
    st.floats(0.001, 1),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 64),
    st.integers(8, 512),
)
def test_pieces_lie_in_the_frame_and_have_their_size(
    u: float, rate: float, width: int, height: int, pieces: int, side: int
) -> None:
    boxes = audit(SilentRules(rate=rate, look="pieces", pieces=pieces, side=side), width, height, u)
    assert len(boxes) == (pieces if u < rate else 0)
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        assert (right - left, bottom - top) == (min(side, width), min(side, height))


def test_every_piece_is_as_likely_anywhere() -> None:
    rng = np.random.default_rng(2)
    rules = SilentRules(rate=0.25, look="pieces", pieces=3, side=40)
    looks = [audit(rules, 240, 140, float(u)) for u in rng.random(40_000)]
    for k in range(3):
        lefts, tops = (np.array([look[k][axis] for look in looks if look]) for axis in (0, 1))
        for places, room in ((lefts, 201), (tops, 101)):
            counts = np.histogram(places, bins=10, range=(0, room))[0]
            assert counts.min() > 0.85 * len(places) / 10 and counts.max() < 1.15 * len(places) / 10
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.05


def test_the_tally_bounds_what_silence_hides() -> None:
    tally = SilentTally()
    assert tally.bound(0.9) is None and "No frame" in tally.sentence(0.9)
    for i in range(200):
        tally = tally.add(found=i < 3)
    assert (tally.frames, tally.found) == (200, 3)
    assert tally.bound(0.9) == clopper_pearson_upper(3, 200, 1 - 0.9)
    assert "200 looked at, 3 of them" in tally.sentence(0.9)


def test_impossible_rules_are_refused() -> None:
    for wrong in ({"rate": 1.1}, {"rate": float("nan")}, {"pieces": 0}, {"side": 2}):
        with pytest.raises(ValueError, match="needed"):
            SilentRules(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tally"):
        SilentTally(frames=1, found=2)
