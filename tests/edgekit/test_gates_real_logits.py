"""The gate's promises on logits of real pictures; see tests/fixtures/README.md for where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.gates.certified import Certificate, calibrate
from edgekit.gates.policy import Gate, GateSettings
from edgekit.gates.scores import margins

FIXTURE = Path(__file__).parents[1] / "fixtures" / "pcb_bare_logits.npz"
DELTA = 0.1


class Population(NamedTuple):
    score: NDArray[np.float64]
    differs: NDArray[np.bool_]

    def risk(self, threshold: float) -> float:
        """The true risk: nothing is estimated, the population is all there is."""
        return float(np.mean((self.score <= threshold) & self.differs))


def population(part: str) -> Population:
    with np.load(FIXTURE) as archive:
        edge = archive[f"{part}edge"].astype(np.float64)
        cloud = archive[f"{part}cloud"]
    powers = np.exp(edge - edge.max(axis=1, keepdims=True))
    score = 1 - margins(powers / powers.sum(axis=1, keepdims=True))
    return Population(score, edge.argmax(axis=1) != cloud.argmax(axis=1))


@pytest.fixture(scope="module")
def calm() -> Population:
    return population("")


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05])
def test_the_risk_is_kept_in_nine_of_ten_calibrations(calm: Population, alpha: float) -> None:
    rng = np.random.default_rng(int(alpha * 1000))
    broken, plain_broken, sent = 0, 0, []
    for _ in range(300):
        drawn = rng.integers(0, len(calm.score), 1000)
        score, differs = calm.score[drawn], calm.differs[drawn]
        certificate = calibrate(score, differs, alpha, DELTA)
        assert isinstance(certificate, Certificate)
        broken += calm.risk(certificate.threshold) > alpha
        sent.append(certificate.send_share)
        order = np.argsort(score)
        plain = score[order][np.flatnonzero(np.cumsum(differs[order]) / 1000 <= alpha)[-1]]
        plain_broken += calm.risk(float(plain)) > alpha
    assert broken / 300 <= DELTA + 0.03
    assert plain_broken / 300 > 0.3  # what a threshold without a bound does on the same draws
    assert np.mean(sent) < 0.9  # and the promise is not kept by sending everything


def stream(gate: Gate, source: Population, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Feed n samples whose answers come at once; True where an answer of the edge counted and the cloud's differs."""
    wrong = np.zeros(n, bool)
    for k, i in enumerate(rng.integers(0, len(source.score), n)):
        differs, name = bool(source.differs[i]), str(rng.integers(2**60))
        decision = gate.decide(1 - float(source.score[i]), float(rng.random()), name)
        wrong[k] = differs and decision.reason in (None, "audit")
        if decision.reason is not None:
            gate.learn(decision.score, differs, decision.reason, name)
    return wrong


@pytest.mark.parametrize("scene", ["faded", "dark"])
def test_a_drift_is_noticed_and_the_risk_comes_back(calm: Population, scene: str) -> None:
    """`faded` makes the edge unsure, which the scores show; `dark` makes it surely wrong, which only audits show."""
    alpha, late, fixed = 0.02, [], []
    drifted = population(f"{scene}_")
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gate = Gate(GateSettings(mode="risk", risk=alpha, confidence=1 - DELTA, calibration=1000))
        stream(gate, calm, 3000, rng)
        status = gate.status()
        assert status.threshold is not None
        assert status.alarms == 0  # no false alarm in 8 clean runs
        fixed.append(drifted.risk(status.threshold))
        wrong = stream(gate, drifted, 4000, rng)
        assert gate.status().alarms >= 1
        late.append(wrong[2000:].mean())
    assert np.mean(fixed) > 1.7 * alpha  # the drift matters: this is what an unwatched threshold would do
    assert np.mean(late) <= 1.7 * alpha


def test_the_gate_as_a_whole_keeps_the_risk(calm: Population) -> None:
    alpha, broken = 0.05, 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        gate = Gate(GateSettings(mode="risk", risk=alpha, confidence=1 - DELTA, calibration=400))
        while gate.status().threshold is None:
            stream(gate, calm, 200, rng)
        broken += calm.risk(float(gate.status().threshold or 0.0)) > alpha
    assert broken / 60 <= DELTA + 0.05
