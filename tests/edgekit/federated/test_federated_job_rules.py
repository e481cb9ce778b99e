"""A job's rules: what a round is bound to, which proposals a device refuses, how sums move the state."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.federated.errors import FederatedError
from edgekit.federated.rounds import CohortSum, JobRules, read_words
from edgekit.federated.strategy import State
from edgekit.messages.federation import FederatedJob, LocalTraining, evaluation_model
from edgekit.secagg import fixedpoint
from edgekit.secagg.messages import RoundConfig

SHAPES = {"a": (2, 3), "b": (4,)}
PLAN = '{"strategy": {"strategy": "fedavg", "clip": 4.0}}'


def _job(**changes: object) -> FederatedJob:
    values = {
        "id": "1f" * 16, "service": "solder", "model": "m@1", "package": "0" * 64, "labels": ("good", "bad"),
        "plan": PLAN, "local": LocalTraining(), "rounds": 3, "most": 4, "least": 3, **changes,
    }  # fmt: skip
    return FederatedJob(**values)  # type: ignore[arg-type]


def _start(rules: JobRules) -> State:
    return rules.start({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})


def _config(rules: JobRules, state: State, kind: str = "learn") -> RoundConfig:
    return rules.config(
        kind,  # type: ignore[arg-type]
        rules.digest(state),
        number=7,
        colluders=1,
        prg="chacha20",
        rosters=bytes(32),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "2f" * 16}, {"rounds": 4}, {"labels": ("bad", "good")}, {"secure": False}, {"most": 5},
        {"plan": PLAN.replace("4.0", "5.0")}, {"local": LocalTraining(epochs=2)}, {"evaluate_every": 1},
        {"plan": PLAN[:-1] + ', "privacy": {"noise_multiplier": 0.5}}'},
    ],
)  # fmt: skip
def test_the_digest_of_a_state_is_that_of_one_job(changes: dict[str, object]) -> None:
    rules, other = JobRules(_job(), SHAPES), JobRules(_job(**changes), SHAPES)
    assert rules.digest(_start(rules)) != other.digest(_start(other))
    assert rules.digest(_start(rules)) == JobRules(_job(), SHAPES).digest(_start(rules))


def test_a_proposal_of_the_job_is_accepted_and_every_other_one_refused() -> None:
    rules = JobRules(_job(), SHAPES)
    state = _start(rules)
    config, digest = _config(rules, state), rules.digest(state)
    rules.check(config, "learn", digest, 7)
    for change in (
        {"session": bytes(16)}, {"round": 8}, {"invited": 5}, {"parameters": 11}, {"clip": 5.0}, {"limit": 1.0},
        {"max_weight": 2}, {"bits": 16}, {"model": bytes(32)},
    ):  # fmt: skip
        with pytest.raises(FederatedError, match=next(iter(change))):
            rules.check(msgspec.structs.replace(config, **change), "learn", digest, 7)
    with pytest.raises(FederatedError, match="another"):
        rules.check(config, "evaluate", digest, 7)


def test_an_evaluation_is_another_contribution_than_the_learning_of_the_same_state() -> None:
    rules = JobRules(_job(), SHAPES)
    state = _start(rules)
    config = _config(rules, state, "evaluate")
    assert config.model == evaluation_model(rules.digest(state)) != rules.digest(state)
    assert config.parameters == 2 * 2 + 2
    rules.check(config, "evaluate", rules.digest(state), 7)


def test_a_sum_moves_the_state_by_the_mean() -> None:
    rules = JobRules(_job(), SHAPES)
    state = _start(rules)
    config = _config(rules, state)
    encoding = fixedpoint.Encoding(config)
    update = np.linspace(-1, 1, 10).astype(np.float32)
    words = fixedpoint.encode(update, 1, encoding, bytes) + fixedpoint.encode(update, 1, encoding, bytes)
    read = read_words(words.tobytes(), config)
    after = rules.apply(state, [CohortSum(read, 2, config)])
    np.testing.assert_allclose(after.model, 1 + update, atol=1e-6)
    assert after.version == 1
    with pytest.raises(FederatedError, match="has one"):
        rules.apply(state, [])
    with pytest.raises(FederatedError, match="bytes"):
        read_words(b"1234", config)


def test_a_robust_job_wants_every_survivor_named() -> None:
    plan = PLAN[:-1] + ', "robust": {"kind": "median", "buckets": 3, "min_bucket": 3}}'
    rules = JobRules(_job(plan=plan), SHAPES)
    state = _start(rules)
    config = _config(rules, state)
    words = fixedpoint.encode(np.zeros(10, np.float32), 1, fixedpoint.Encoding(config), bytes)
    words[-2] = 3
    with pytest.raises(FederatedError, match="not all named"):
        rules.apply(state, [CohortSum(words, 3, config, frozenset([b"a"]))] * 3)
    named = [CohortSum(words, 3, config, frozenset(bytes([b, i]) for i in range(3))) for b in range(3)]
    assert rules.apply(state, named).version == 1


def test_a_plan_that_cannot_be_read_is_refused() -> None:
    for plan in ("{", "{}", PLAN.replace("fedavg", "krum"), PLAN[:-1] + ', "more": 1}'):
        with pytest.raises(FederatedError, match="cannot be read"):
            JobRules(_job(plan=plan), SHAPES)
