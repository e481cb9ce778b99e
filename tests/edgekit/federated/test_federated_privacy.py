"""Differential privacy: the noise is what it claims, the account is what the papers say, and the budget holds."""

from __future__ import annotations

import math
import secrets

import msgspec
import numpy as np
import pytest
from federated_support import summed

from edgekit.federated import accountant, noise
from edgekit.federated.accountant import ORDERS, epsilon, skellam_rdp
from edgekit.federated.averaging import AveragingStrategy, FedAvg
from edgekit.federated.budget import Account, Budget
from edgekit.federated.errors import BudgetSpent, FederatedError
from edgekit.federated.layout import Layout
from edgekit.federated.privacy import Mechanism, Privacy, noise_multiplier, noise_sources
from edgekit.federated.strategy import Contribution
from edgekit.federated.sums import Room
from edgekit.secagg.parameters import GraphParameters, choose, complete, quorum, smallest_cut


def poisson_difference(variance: int, last: int) -> np.ndarray:
    """P(k), k = 0..last, as the convolution of two Poisson distributions: another way than the module's."""
    n = np.arange(variance + 12 * math.isqrt(variance) + 60)
    logs = n * math.log(variance / 2) - variance / 2 - np.array([math.lgamma(x + 1) for x in n])
    p = np.exp(logs)
    return np.array([p[k:] @ p[: len(p) - k] for k in range(last + 1)])


@pytest.mark.parametrize("variance", [1, 9, 400])
def test_the_probabilities_are_those_of_two_poisson_variables_difference(variance: int) -> None:
    found = noise.probabilities(variance)
    wanted = poisson_difference(variance, len(found) - 1)
    large = wanted > 1e-14
    np.testing.assert_allclose(found[large], wanted[large], rtol=1e-9)


@pytest.mark.parametrize("variance", [1, 100, 10**6, 8192**2])
def test_the_probabilities_have_mass_one_and_that_variance_and_end_below_the_truncation(variance: int) -> None:
    p = noise.probabilities(variance)
    k = np.arange(len(p), dtype=float)
    assert p[0] + 2 * p[1:].sum() == pytest.approx(1, abs=1e-12)
    assert 2 * (p * k**2).sum() == pytest.approx(variance, rel=1e-12)
    assert p[-1] * 2 < 2.0**-60


def test_draws_have_the_moments_of_skellam_noise() -> None:
    count, variance = 400_000, 25
    draws = noise.skellam(count, variance, b"k" * 32).astype(float)
    # of a Skellam variable: mean 0, variance v, fourth central moment 3 v^2 + v; bounds are five standard errors
    assert abs(draws.mean()) < 5 * math.sqrt(variance / count)
    assert abs(draws.var() / variance - 1) < 5 * math.sqrt(2.1 / count)
    assert abs((draws**4).mean() / (3 * variance**2 + variance) - 1) < 5 * math.sqrt(11 / count)
    assert np.corrcoef(draws[1:], draws[:-1])[0, 1] == pytest.approx(0, abs=5 / math.sqrt(count))
    found = np.bincount(np.abs(draws).astype(int), minlength=16)[:16] / count
    wanted = noise.probabilities(variance)[:16] * np.where(np.arange(16) > 0, 2, 1)
    np.testing.assert_allclose(found, wanted, atol=5 * math.sqrt(0.16 / count))


def test_draws_follow_from_the_key_alone() -> None:
    one = noise.skellam(1000, 64, b"a" * 32)
    np.testing.assert_array_equal(one, noise.skellam(1000, 64, b"a" * 32))
    assert (one != noise.skellam(1000, 64, b"b" * 32)).any()


@pytest.mark.parametrize(("variance", "shift"), [(4, 1), (16, 1), (16, 3), (100, 5)])
def test_the_bound_of_the_accountant_is_above_the_exact_divergence_and_near_it(variance: int, shift: int) -> None:
    p = noise.probabilities(variance)
    width = len(p) - 1
    both = np.concatenate([p[:0:-1], p])
    here, there = both[shift : 2 * width + 1], both[: 2 * width + 1 - shift]
    bounds = skellam_rdp(variance, shift, shift)
    for order in (2, 3, 5, 8):
        exact = math.log(float((here**order * there ** (1 - order)).sum())) / (order - 1)
        bound = bounds[ORDERS.index(order)]
        assert exact <= bound * (1 + 1e-6)
        assert bound < 2 * exact


def test_the_bound_is_the_formula_of_agarwal_et_al() -> None:
    # a D2^2 / 2v + min(((2a - 1) D2^2 + 6 D1) / 4 v^2, 3 D1 / 2v) by hand for a = 4, v = 50, D1 = 12, D2 = 3
    assert skellam_rdp(50.0, 12.0, 3.0)[ORDERS.index(4)] == pytest.approx(0.36 + min(135 / 10_000, 0.36))


def test_the_conversion_is_that_of_the_published_accountants() -> None:
    # google/differential-privacy, dp_accounting's own test: e(a) = 1.1 for a = 2..32 at 1e-5 gives 1.32783806176
    assert epsilon([1.1] * 31, 1e-5, range(2, 33)) == pytest.approx(1.32783806176, abs=1e-10)
    assert epsilon([0.0] * len(ORDERS), 1e-5) == 0.0


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 5.0])
def test_epsilon_is_above_the_exact_one_of_the_gaussian_mechanism_and_near_it(sigma: float) -> None:
    def delta_of(e: float) -> float:  # Balle and Wang 2018, arXiv 1805.06530, theorem 8
        phi = [0.5 * math.erfc(-x / math.sqrt(2)) for x in (0.5 / sigma - e * sigma, -0.5 / sigma - e * sigma)]
        return phi[0] - math.exp(e) * phi[1]

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > 1e-5 else (low, middle)
    found = epsilon([order / (2 * sigma**2) for order in ORDERS], 1e-5)
    assert high <= found <= 1.15 * high


def test_the_sum_has_the_full_noise_if_as_many_vanish_as_are_tolerated() -> None:
    invited, size = 16, 40_000
    room, colluders = Room(invited=invited), 5
    graph = complete(invited, colluders)
    sources = noise_sources(invited, colluders, graph)
    assert sources == quorum(invited, colluders) - colluders == 6
    mechanism = Mechanism(Privacy(noise_multiplier=1.5), size, 2.0, room)
    # q survivors, of which c add nothing: what the rest adds alone must be the noise that was promised
    honest = [mechanism.hide(np.zeros(size, np.float32), sources, secrets.token_bytes(32)) for _ in range(sources)]
    silent = [np.zeros(size, np.float32)] * colluders
    total = summed([Contribution(one, 1) for one in honest + silent], mechanism.numbers)
    found = float(total.codes.astype(np.float64).var())
    assert found / mechanism.variance == pytest.approx(1, abs=5 * math.sqrt(2 / size))


def test_a_hidden_update_comes_out_as_the_mean_and_its_noise() -> None:
    layout = Layout({"w": (500,)})
    strategy = AveragingStrategy(layout, FedAvg(clip=1.0))
    mechanism = Mechanism(
        Privacy(noise_multiplier=0.01), strategy.numbers.parameters, strategy.numbers.clip, Room(invited=8)
    )
    rng = np.random.default_rng(5)
    vectors = [(rng.standard_normal(500) / 30).astype(np.float32) for _ in range(8)]
    made = [Contribution(mechanism.hide(one, 5, secrets.token_bytes(32)), 1) for one in vectors]
    mean = mechanism.mean(summed(made, mechanism.numbers))
    deviation = math.sqrt(8 * mechanism.share(5)) / mechanism.scale / 8
    assert float((mean.mean - np.mean(vectors, axis=0)).std()) == pytest.approx(deviation, rel=0.2)
    state = strategy.start(np.zeros(500, np.float32))
    np.testing.assert_array_equal(strategy.apply(state, mean).model, mean.mean)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_no_vector_exceeds_the_sensitivity_after_rounding(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 9000
    mechanism = Mechanism(Privacy(noise_multiplier=64.0), size, 1.0, Room(invited=8))
    monkeypatch.setattr(noise, "skellam", lambda count, *_: np.zeros(count, np.int64))
    # the worst case: every value is half a code and is rounded away from zero
    worst = np.full(size, 0.5000001 / mechanism.scale, np.float32)
    assert np.linalg.norm(worst) < 1.0
    assert math.sqrt(size) > mechanism.sensitivity, "or nothing would have to be shortened"
    worst[:4000] *= np.float32(1.5 * factor)
    codes = np.rint(mechanism.hide(worst, 5, bytes(32)).astype(np.float64) * 2.0**32)
    assert 0 < np.linalg.norm(codes) <= mechanism.sensitivity


def test_words_without_room_for_the_noise_are_refused() -> None:
    with pytest.raises(FederatedError, match="do not fit 16-bit words"):
        Mechanism(Privacy(noise_multiplier=1.0), 1_000_000, 1.0, Room(invited=32, bits=16))
    Mechanism(Privacy(noise_multiplier=1.0), 10_000_000, 1.0, Room(invited=1000))


def test_a_random_graph_counts_only_survivors_that_cannot_be_left_out() -> None:
    count, colluders = 300, 30
    graph = choose(count, colluders, 0.1, 128)
    assert isinstance(graph, GraphParameters)
    left = quorum(count, colluders) - colluders
    assert noise_sources(count, colluders, graph) == left - (smallest_cut(count, colluders, graph) - 1) < left


def test_the_noise_that_is_asked_for_is_enough_and_not_much_more() -> None:
    room = Room(invited=32)
    z = noise_multiplier(8.0, 1e-6, 50, parameters=1000, clip=1.0, room=room)

    def spent(multiplier: float) -> float:
        cost = Mechanism(Privacy(noise_multiplier=multiplier), 1000, 1.0, room).cost
        return epsilon([50 * value for value in cost.rdp], 1e-6)

    assert spent(z) <= 8.0 < spent(0.97 * z)


def test_a_device_refuses_when_its_budget_is_spent_and_nothing_is_charged_then() -> None:
    cost = Mechanism(Privacy(noise_multiplier=2.0), 1000, 1.0, Room(invited=16)).cost
    budget, account = Budget(epsilon=6.0, delta=1e-5), Account()
    taken = 0
    with pytest.raises(BudgetSpent, match=r"the device allows 6 \(privacy.epsilon\)"):
        while True:
            account = account.charge(cost, budget, taken.to_bytes(4, "big"))
            taken += 1
    assert account.contributions == taken >= 3
    assert account.epsilon(1e-5) <= 6.0
    again = epsilon([(taken + 1) * value for value in cost.rdp], 1e-5)
    assert again > 6.0


def test_the_same_contribution_after_a_restart_is_paid_once_and_the_account_survives_storage() -> None:
    cost = Mechanism(Privacy(noise_multiplier=2.0), 1000, 1.0, Room(invited=16)).cost
    budget = Budget(epsilon=6.0, delta=1e-5)
    account = Account().charge(cost, budget, b"session 1")
    stored = msgspec.json.decode(msgspec.json.encode(account), type=Account)
    assert stored == account == stored.charge(cost, budget, b"session 1")
    assert stored.charge(cost, budget, b"session 2").contributions == 2


@pytest.mark.parametrize(
    "change", [{"rdp": (0.0,)}, {"rdp": (-1.0,) * len(ORDERS)}, {"rdp": (math.nan,) * len(ORDERS)}, {"slack": math.inf}]
)
def test_a_damaged_account_allows_nothing(change: dict[str, object]) -> None:
    stored = msgspec.to_builtins(Account()) | change
    with pytest.raises((FederatedError, msgspec.ValidationError)):
        msgspec.convert(stored, Account)


def test_an_account_of_more_rounds_costs_the_sum() -> None:
    curve = accountant.skellam_rdp(100.0, 10.0, 5.0)
    assert epsilon([9 * one for one in curve], 1e-6) < 9 * epsilon(curve, 1e-6)
    assert epsilon([9 * one for one in curve], 1e-6) > epsilon(curve, 1e-6)
