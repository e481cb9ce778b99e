"""Link and cloud estimates: they converge on simulated links, and nothing that is observed can break them."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.planning.estimates import (
    MAX_BANDWIDTH,
    PRIOR_BANDWIDTH,
    PRIOR_RTT,
    CloudEstimator,
    LinkEstimate,
    LinkEstimator,
    Span,
)
from edgekit.planning.recent import SIZE, Recent, quantile, weighted_quantile

PING = 300
LINKS = list(product((1.0, 5.0, 20.0, 100.0, 1000.0), (1.0, 10.0, 50.0)))


class Link:
    """A link that a test changes while an estimator watches; ten requests a second, every fifth a small one."""

    def __init__(self, mbit: float, rtt_ms: float, noise: float = 0.0, seed: int = 1) -> None:
        self.mbit, self.rtt_ms, self.noise = mbit, rtt_ms, noise
        self.estimator = LinkEstimator()
        self.now = 0.0
        self._rng = random.Random(seed)

    def take(self, size: int) -> float:
        """Seconds that a request takes."""
        rtt = self.rtt_ms * math.exp(self.noise * self._rng.gauss(0, 1))
        return rtt / 1e3 + size * 8e-6 / (self.mbit * math.exp(self.noise * self._rng.gauss(0, 1)))

    def send(self, count: int, sizes: tuple[int, ...] = (25_000, 56_000, 109_000)) -> LinkEstimate:
        for number in range(count):
            self.now += 0.1
            if number % 5 == 0:
                self.estimator.observe(PING, self.take(0), self.now)
            self.estimator.observe(sizes[number % len(sizes)], self.take(sizes[number % len(sizes)]), self.now)
        return self.estimator.estimate(self.now)


# --- convergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mbit", "rtt_ms"), LINKS)
def test_a_constant_link_is_known_to_a_thousandth_after_fifteen_requests(mbit: float, rtt_ms: float) -> None:
    estimate = Link(mbit, rtt_ms).send(15)
    assert estimate.state == "measured"
    assert estimate.mbit == pytest.approx(mbit, rel=1e-3)
    assert estimate.rtt.typical == pytest.approx(rtt_ms, rel=1e-3)
    assert estimate.rtt.slow == pytest.approx(rtt_ms, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mbit", "rtt_ms"), LINKS)
def test_the_p95_of_a_noisy_request_is_predicted_within_fifteen_percent(mbit: float, rtt_ms: float, seed: int) -> None:
    link = Link(mbit, rtt_ms, noise=0.2, seed=seed)
    estimate = link.send(400)
    for size in (12_000, 56_000):
        parts = (estimate.transfer(size), estimate.rtt)
        predicted = sum(part.typical for part in parts) + math.hypot(*(part.spread for part in parts))
        real = quantile((link.take(size) * 1e3 for _ in range(2000)), 0.95)
        assert predicted == pytest.approx(real, rel=0.15), size


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mbit", [1.0, 20.0, 100.0])
def test_bandwidth_is_the_20th_percentile_where_transfers_are_long(mbit: float, seed: int) -> None:
    estimate = Link(mbit, 1.0, noise=0.3, seed=seed).send(300)
    true = mbit * math.exp(-0.842 * 0.3)
    assert estimate.mbit == pytest.approx(true, rel=0.2)
    assert estimate.typical_bandwidth * 8e-6 == pytest.approx(mbit, rel=0.15)


@pytest.mark.parametrize(("before", "after"), [(100.0, 5.0), (5.0, 100.0), (50.0, 1.0), (1.0, 1000.0)])
def test_a_step_of_the_bandwidth_is_known_within_ten_requests(before: float, after: float) -> None:
    link = Link(before, 5.0, noise=0.1)
    assert link.send(300).mbit == pytest.approx(before, rel=0.2)
    link.mbit = after
    # Where the round trip hides the transfer, what matters is that it is no longer thought to take long.
    late = link.send(10).transfer(56_000).slow
    assert late == pytest.approx(56_000 * 8e-3 / after, rel=0.4, abs=3.0)


def test_a_step_of_the_round_trip_is_known_after_five_small_requests() -> None:
    link = Link(50.0, 5.0, noise=0.1)
    link.send(300)
    link.rtt_ms = 40.0
    assert link.send(25).rtt.typical == pytest.approx(40.0, rel=0.2)


def test_noise_alone_makes_nothing_forgotten() -> None:
    link = Link(20.0, 10.0, noise=0.25)
    assert link.send(200).samples == SIZE
    assert {link.send(10).samples for _ in range(300)} == {SIZE}


# --- what says nothing -----------------------------------------------------------------------------------------------


def test_many_tiny_requests_do_not_move_the_bandwidth() -> None:
    link = Link(20.0, 10.0, noise=0.1)
    before = link.send(100)
    for _ in range(1000):
        link.now += 0.01
        for size in (200, 2000, 4000):
            link.estimator.observe(size, link.take(size), link.now)
    after = link.estimator.estimate(link.now)
    assert after.bandwidth == pytest.approx(before.bandwidth, rel=0.1)
    assert after.state == "measured"


def test_small_transfers_count_where_no_large_one_is_known() -> None:
    assert Link(1.0, 10.0, noise=0.1).send(200, sizes=(2500,)).mbit == pytest.approx(1.0, rel=0.25)


def test_what_cloudd_took_is_no_slowness_of_the_link() -> None:
    busy, idle = LinkEstimator(), LinkEstimator()
    for number in range(40):
        for estimator, cloud_s in ((busy, 0.3), (idle, 0.0)):
            estimator.observe(PING, 0.010, number)
            estimator.observe(50_000, 0.050 + cloud_s, number, cloud_s=cloud_s)
    assert busy.estimate(40.0).bandwidth == pytest.approx(idle.estimate(40.0).bandwidth)


@pytest.mark.parametrize("lie", [math.nan, math.inf, -1.0, 1e9])
def test_a_cloud_that_lies_about_its_time_cannot_break_the_estimate(lie: float) -> None:
    estimator = LinkEstimator()
    for number in range(40):
        estimator.observe(PING, 0.010, number, cloud_s=lie)
        estimator.observe(50_000, 0.050, number, cloud_s=lie)
    estimate = estimator.estimate(40.0)
    assert 0.0 < estimate.bandwidth <= MAX_BANDWIDTH
    assert 0.0 < estimate.rtt.slow < 1e6


# --- requests that were not answered ---------------------------------------------------------------------------------


def test_five_timeouts_in_a_row_show_that_the_link_has_become_slow() -> None:
    link = Link(100.0, 10.0, noise=0.1)
    link.send(200)
    for _ in range(5):
        link.now += 0.3
        link.estimator.observe(25_000, 0.25, link.now, outcome="timeout")
    assert link.estimator.estimate(link.now).mbit < 1.0


def test_a_request_given_up_early_says_nothing() -> None:
    link = Link(1.0, 10.0)
    before = link.send(30)
    for _ in range(20):
        link.estimator.observe(100_000, 0.02, link.now, outcome="timeout")
    assert link.estimator.estimate(link.now).bandwidth == before.bandwidth


# --- knowing and no longer knowing -----------------------------------------------------------------------------------


def test_before_the_first_requests_the_estimate_is_a_prior_and_says_so() -> None:
    assert LinkEstimator().estimate(5.0) == LinkEstimate(
        state="unknown", bandwidth=PRIOR_BANDWIDTH, typical_bandwidth=PRIOR_BANDWIDTH, rtt=PRIOR_RTT
    )


def test_without_a_small_request_the_link_stays_unknown() -> None:
    estimator = LinkEstimator()
    for number in range(20):
        estimator.observe(50_000, 0.05, number)
    assert estimator.estimate(20.0).state == "unknown"
    for number in range(3):
        estimator.observe(PING, 0.01, 20.0 + number)
    assert estimator.estimate(23.0).state == "measured"


def test_an_old_estimate_is_stale_and_a_very_old_one_is_forgotten() -> None:
    link = Link(20.0, 10.0)
    fresh = link.send(30)
    stale = link.estimator.estimate(link.now + 600.0)
    assert stale.state == "stale"
    assert stale.bandwidth == fresh.bandwidth
    gone = link.estimator.estimate(link.now + 7200.0)
    assert (gone.state, gone.bandwidth, gone.rtt) == ("unknown", PRIOR_BANDWIDTH, PRIOR_RTT)


def test_one_transfer_after_a_pause_makes_the_estimate_fresh_again() -> None:
    link = Link(20.0, 10.0)
    link.send(30)
    link.now += 600.0
    assert link.send(1).state == "measured"


# --- whatever is observed --------------------------------------------------------------------------------------------

observations = st.lists(
    st.tuples(
        st.integers(0, 1 << 40),
        st.floats(0.0, 1e9),
        st.floats(allow_nan=True, allow_infinity=True),
        st.sampled_from(["answered", "timeout"]),
        st.floats(0.0, 5000.0),
    ),
    max_size=60,
)


@given(observations, st.floats(0.0, 1e5))
def test_whatever_is_observed_the_estimate_is_finite_and_positive(
    requests: list[tuple[int, float, float, str, float]], later: float
) -> None:
    estimator, now = LinkEstimator(), 0.0
    for size, seconds, cloud_s, outcome, pause in requests:
        now += pause
        estimator.observe(size, seconds, now, outcome=outcome, cloud_s=cloud_s)  # type: ignore[arg-type]
        estimate = estimator.estimate(now + later)
        for value in (estimate.bandwidth, estimate.typical_bandwidth, estimate.rtt.typical, estimate.rtt.slow):
            assert 0.0 < value < math.inf
        assert estimate.bandwidth <= estimate.typical_bandwidth <= MAX_BANDWIDTH * (1 + 1e-9)
        assert estimate.rtt.typical <= estimate.rtt.slow
        assert 0 <= estimate.samples <= SIZE
        span = estimate.transfer(1 << 30)
        assert 0.0 < span.typical <= span.slow < math.inf


@pytest.mark.parametrize(
    ("size", "seconds", "now"),
    [(-1, 1.0, 0.0), (10, -1.0, 0.0), (10, math.nan, 0.0), (10, math.inf, 0.0), (10, 1, math.nan)],
)
def test_a_size_or_time_that_cannot_be_is_an_error(size: int, seconds: float, now: float) -> None:
    with pytest.raises(ValueError, match="no request has"):
        LinkEstimator().observe(size, seconds, now)


# --- the cloud -------------------------------------------------------------------------------------------------------


def test_a_work_that_was_never_tried_is_guessed_from_the_others() -> None:
    cloud = CloudEstimator()
    assert cloud.compute_ms("frame", 100.0, 0.0) == 100.0
    for number in range(5):
        cloud.observe("frame", 100.0, 25.0, 1.0, number)
    assert cloud.compute_ms("frame", 100.0, 5.0) == 25.0
    assert cloud.compute_ms("split@3", 40.0, 5.0) == 10.0


def test_a_measured_work_keeps_its_own_time() -> None:
    cloud = CloudEstimator()
    for number in range(200):
        cloud.observe("regions", 10.0, 30.0, 0.0, number)
        cloud.observe("frame", 100.0, 50.0, 0.0, number)
    assert cloud.compute_ms("regions", 10.0, 200.0) == 30.0
    assert cloud.compute_ms("frame", 100.0, 200.0) == 50.0


def test_the_wait_in_cloudd_has_a_median_and_a_slow_side() -> None:
    cloud = CloudEstimator()
    assert cloud.wait(0.0) == Span(0.0, 0.0)
    for number in range(100):
        cloud.observe("frame", 1.0, 1.0, float(number), number)
    assert cloud.wait(100.0) == Span(49.0, 94.0)


@example([("frame", 1e-310, 1.0, 0.0)] * 3 + [("split@1", 5.0, 1.0, 0.0)])
@given(
    st.lists(
        st.tuples(
            st.text(max_size=3),
            st.floats(allow_nan=True),
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=100,
    )
)
def test_whatever_cloudd_reports_its_times_are_finite_and_not_negative(
    answers: list[tuple[str, float, float, float]],
) -> None:
    cloud = CloudEstimator()
    for work, declared, compute, wait in answers:
        cloud.observe(work, declared, compute, wait, 1.0)
    assert 0.0 <= cloud.wait(2.0).typical <= cloud.wait(2.0).slow < math.inf
    for work, *_ in answers:
        assert 0.0 <= cloud.compute_ms(work, 5.0, 2.0) < math.inf


def test_names_of_work_do_not_pile_up() -> None:
    cloud = CloudEstimator()
    for number in range(1000):
        for _ in range(3):
            cloud.observe(f"split@{number}", 10.0, 7.0, 0.0, number)
    assert cloud.compute_ms("split@999", 5.0, 1000.0) == 7.0
    assert cloud.compute_ms("split@0", 5.0, 1000.0) == pytest.approx(3.5)  # forgotten: guessed again


# --- recent values ---------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0.0, 1.0))
def test_a_quantile_is_one_of_the_values_and_leaves_its_share_below(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)
    assert sum(value < found for value in values) <= share * len(values) + 1e-9 * len(values)


def test_a_heavy_value_outweighs_many_light_ones() -> None:
    assert weighted_quantile([(1.0, 1.0)] * 10 + [(9.0, 100.0)], 0.5) == 9.0


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_recent_values_are_bounded_in_number_and_age() -> None:
    recent: Recent[int] = Recent(horizon_s=10.0, memory_s=100.0)
    for number in range(10_000):
        recent.add(number, number * 0.01)
    assert len(recent) == SIZE
    assert recent.values(100.0)[-1] == 9999
    assert recent.freshness(100.0) == "measured"
    assert recent.freshness(115.0) == "stale"
    assert len(recent.values(115.0)) == 32
    assert recent.freshness(250.0) == "unknown"
    assert recent.values(250.0) == []
