"""Two tiers: what goes through them, and that the mean of means is the mean of all devices."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.federated import evaluation
from edgekit.federated.errors import FederatedError
from edgekit.federated.plan import Plan
from edgekit.federated.rounds import CohortSum, JobRules
from edgekit.federated.strategy import LocalResult, State
from edgekit.federated.tiers import alike, check_site_job, moving_rules, site_figures, site_plan, site_result
from edgekit.messages.federation import FederatedJob, LocalTraining, RoundKind
from edgekit.secagg import fixedpoint

SHAPES = {"body.w": (3, 4), "norm.s": (4,), "head.w": (2, 4)}
SIZE = 24


def job_of(strategy: str, more: str = "", **changes: object) -> FederatedJob:
    text = f'{{"strategy": {strategy}{", " + more if more else ""}}}'
    plan = msgspec.json.encode(msgspec.json.decode(text, type=Plan)).decode()
    fields: dict[str, object] = {
        "id": "ab" * 16, "service": "solder", "model": "small@1", "package": "0" * 64, "labels": ("good", "bad"),
        "plan": plan, "local": LocalTraining(), "rounds": 3, "most": 8,
    }  # fmt: skip
    return msgspec.convert({**fields, **changes}, FederatedJob)


def weighted(most: int) -> str:
    return f'{{"strategy": "fedavg", "clip": 50.0, "weighting": {{"most": {most}, "samples": 10}}}}'


def site_of(upper: FederatedJob, **changes: object) -> FederatedJob:
    plan = site_plan(msgspec.json.decode(upper.plan, type=Plan))
    mine = {"id": "cd" * 16, "upper": upper, "plan": msgspec.json.encode(plan).decode(), "most": 4, "leader": "L"}
    return msgspec.structs.replace(upper, **{**mine, **changes})


def summed(
    rules: JobRules, state: State, kind: RoundKind, made: Sequence[tuple[NDArray[np.float32], int]]
) -> CohortSum:
    config = rules.config(kind, rules.digest(state), number=0, colluders=1, prg="aes-256-ctr", rosters=bytes(32))
    encoding = fixedpoint.Encoding(config)
    words = np.zeros(encoding.words, f"<u{config.bits // 8}")
    for vector, weight in made:
        words += fixedpoint.encode(vector, weight, encoding, os.urandom)
    return CohortSum(words, len(made), config)


def start(rules: JobRules) -> State:
    return rules.start({name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()})


@settings(deadline=None, max_examples=30)
@given(
    sites=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=2, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_weights_two_tiers_give_the_mean_of_one(sites: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    upper = job_of(weighted(64))
    above = JobRules(upper, SHAPES)
    below = JobRules(site_of(upper), SHAPES)
    state = start(above)
    everybody, between = [], []
    for samples in sites:
        devices = []
        for count in samples:
            delta = rng.normal(0, 1, SIZE).astype(np.float32)
            found = below.strategy.contribution(state, LocalResult(delta, count, 1, 0.1), None)
            devices.append((found.vector, found.weight))
        everybody += devices
        result = site_result(below, state, summed(below, state, "learn", devices))
        found = above.strategy.contribution(state, result, None)
        assert found.weight == min(64, sum(weight for _, weight in devices))
        between.append((found.vector, found.weight))
    after = above.apply(state, [summed(above, state, "learn", between)])
    weights = np.array([weight for _, weight in everybody], float)
    mean = sum(weight * vector for (vector, weight) in everybody) / weights.sum()
    if all(weight < 64 for _, weight in between):
        np.testing.assert_allclose(after.model, state.model + mean, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    sites=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=2, max_size=4),
    momentum=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_fednova_goes_through_two_tiers_as_through_one_however_unequal_the_steps(
    sites: list[list[int]], momentum: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    upper = job_of(
        '{"strategy": "fednova", "clip": 50.0, "most_steps": 40, "learning_rate": 0.5, '
        f'"momentum": {momentum}, "weighting": {{"most": 16, "samples": 10}}}}'
    )
    flat = JobRules(msgspec.structs.replace(upper, most=16), SHAPES)
    above, below = JobRules(upper, SHAPES), JobRules(site_of(upper), SHAPES)
    state = start(above)
    everybody, between = [], []
    for steps in sites:
        results = [LocalResult(rng.normal(0, 1, SIZE).astype(np.float32), 10, count, 0.1) for count in steps]
        made = [below.strategy.contribution(state, one, None) for one in results]
        everybody += [flat.strategy.contribution(state, one, None) for one in results]
        result = site_result(below, state, summed(below, state, "learn", [(one.vector, one.weight) for one in made]))
        found = above.strategy.contribution(state, result, None)
        assert found.weight == len(steps)
        between.append((found.vector, found.weight))
    wanted = flat.apply(state, [summed(flat, state, "learn", [(one.vector, one.weight) for one in everybody])])
    after = above.apply(state, [summed(above, state, "learn", between)])
    np.testing.assert_allclose(after.model, wanted.model, atol=2e-3)


@pytest.mark.parametrize("effective", [0.5, 11.0, float("nan"), float("inf")])
def test_a_site_cannot_say_more_steps_than_its_devices_may_make(effective: float) -> None:
    rules = JobRules(job_of('{"strategy": "fednova", "clip": 1.0, "most_steps": 10}'), SHAPES)
    wrong = LocalResult(np.zeros(SIZE, np.float32), 1, 1, 0.0, effective=effective)
    with pytest.raises(FederatedError, match="effective steps"):
        rules.strategy.contribution(start(rules), wrong, None)


def test_without_weights_all_sites_count_the_same() -> None:
    upper = job_of('{"strategy": "fedavgm", "clip": 50.0}')
    above, below = JobRules(upper, SHAPES), JobRules(site_of(upper), SHAPES)
    state, ones = start(above), np.ones(SIZE, np.float32)
    results = [
        site_result(below, state, summed(below, state, "learn", [(value * ones, 1)] * count))
        for value, count in ((1.0, 4), (3.0, 1))
    ]
    found = [above.strategy.contribution(state, one, None) for one in results]
    assert [one.weight for one in found] == [1, 1]
    np.testing.assert_allclose(sum(one.vector for one in found) / 2, 2.0, rtol=1e-5)


def test_the_confusion_of_a_site_goes_up_as_it_is() -> None:
    upper = job_of(weighted(4), evaluate_every=1)
    below = JobRules(site_of(upper), SHAPES)
    state = start(below)
    made = [evaluation.contribution(below.evaluation, np.array([[i, 1], [2, 3]]), 0.25) for i in (4, 5, 6)]
    found = site_figures(below, summed(below, state, "evaluate", [(one.vector, one.weight) for one in made]))
    assert found.confusion.tolist() == [[15, 3], [6, 9]]
    assert found.loss == pytest.approx(0.25, abs=0.01)
    above = JobRules(upper, SHAPES)
    assert evaluation.contribution(above.evaluation, found.confusion, found.loss).weight == 1


@pytest.mark.parametrize(
    ("strategy", "more", "why"),
    [
        ('{"strategy": "scaffold", "clip": 1.0, "devices": 4, "control_scale": 2.0}', "", "scaffold"),
        ('{"strategy": "additive-head"}', "", "with a head a device keeps"),
        ('{"strategy": "fedavg", "clip": 1.0}', '"max_age": 2', "one tier"),
        ('{"strategy": "fedavg", "clip": 1.0}', '"privacy": {"noise_multiplier": 2.0}', "privacy has one tier"),
    ],
)
def test_what_cannot_go_through_two_tiers_is_refused(strategy: str, more: str, why: str) -> None:
    with pytest.raises(FederatedError, match=why):
        site_plan(msgspec.json.decode(job_of(strategy, more).plan, type=Plan))


def test_buckets_are_of_sites_and_not_of_devices() -> None:
    upper = job_of('{"strategy": "fedavg", "clip": 1.0}', '"robust": {"kind": "median", "buckets": 3, "min_bucket": 3}')
    assert site_plan(msgspec.json.decode(upper.plan, type=Plan)).robust is None
    rules = JobRules(site_of(upper), SHAPES)
    assert rules.plan.robust is None and moving_rules(rules).plan.robust is not None


def test_a_site_job_that_differs_from_its_upper_job_is_refused() -> None:
    upper = job_of(weighted(4))
    check_site_job(upper)
    right = site_of(upper)
    check_site_job(right)
    for name, value in (
        ("model", "small@2"), ("labels", ("bad", "good")), ("rounds", 4), ("evaluate_every", 1),
        ("local", LocalTraining(epochs=2)), ("plan", job_of(weighted(5)).plan), ("package", "1" * 64),
    ):  # fmt: skip
        with pytest.raises(FederatedError, match=f"another {name}"):
            check_site_job(msgspec.structs.replace(right, **{name: value}))
    with pytest.raises(FederatedError, match="not three"):
        check_site_job(msgspec.structs.replace(right, upper=right))


def test_the_upper_jobs_sums_move_a_sites_state_and_its_own_do_not() -> None:
    upper = job_of(weighted(4), most=5)
    rules = JobRules(site_of(upper), SHAPES)
    moving = moving_rules(rules)
    state = start(rules)
    assert moving.room.invited == 5 and rules.room.invited == 4
    assert moving.digest(state) == JobRules(upper, SHAPES).digest(state) != rules.digest(state)
    own = summed(rules, state, "learn", [(np.ones(SIZE, np.float32), 1)])
    with pytest.raises(FederatedError):
        moving.check(own.config, "learn", moving.digest(state), 0)
    assert moving_rules(JobRules(upper, SHAPES)).job is upper
    assert alike(rules, upper).strategy.layout.digest == rules.strategy.layout.digest


def test_a_sum_that_is_none_of_the_site_is_refused() -> None:
    upper = job_of(weighted(4))
    rules = JobRules(site_of(upper), SHAPES)
    state = start(rules)
    total = summed(rules, state, "learn", [(np.ones(SIZE, np.float32), 1)] * 3)
    total.words[-2] = 99  # weights that three devices cannot have
    with pytest.raises(FederatedError):
        site_result(rules, state, total)
    short = CohortSum(total.words[:-1].copy(), 3, total.config)
    with pytest.raises(FederatedError):
        site_result(rules, state, short)
