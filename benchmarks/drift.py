"""What the gate does when the scene changes: the risk before, soon after, and in the last 2,000 of 4,000 samples.

    python -m benchmarks.drift [--quick] [--json FILE]

Each run is a stream: samples until the gate is certified, a clean phase, then 4,000 samples of the changed scene. The
answer to what is sent comes at once. Risk is the share of samples whose counting answer is the edge's and differs from
the cloud's. The streams:

pcb-bare faded  recorded logits of two models on real circuit boards (tests/fixtures): out of focus, less contrast,
                noise; the edge becomes unsure, 87 -> 69 % right, the cloud 93 -> 89 %
pcb-bare dark   the same boards under a failing lamp: the edge 87 -> 50 %, the cloud 93 -> 90 %
simulated       logits drawn so that seven figures of the research stream come out (algorithms.md 1.5): edge 86 -> 55 %,
                cloud 95 -> 91 %, a threshold for 2 % sends 36 %, and after the change has 17.5 % risk and sends 46 %

The policies: `gate` is the gate as it ships. `no audits` is the same gate hearing only the scores. `fixed` is its first
certificate, kept for ever. The figures outside `cases` are the gate's on the stream where it does worst.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from edgekit.gates.policy import Gate, GateSettings
from edgekit.gates.scores import margins

ALPHA = 0.02
CONFIDENCE = 0.9
RUNS = 8
AFTER, LAST = 4000, 2000
GOAL = 1.7 * ALPHA

_FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "pcb_bare_logits.npz"
_SIMULATED = 20_000  # samples of a simulated scene

Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A population of samples, drawn from with replacement; both arrays have shape (n,)."""

    margin: NDArray[np.float64]  # of the edge's answer
    differs: NDArray[np.bool_]  # from the cloud's
    edge_right: float  # share
    cloud_right: float


def scene(edge: NDArray[Any], cloud: NDArray[Any], label: NDArray[Any]) -> Scene:
    """From logits of shape (n, classes) and true labels."""
    powers = np.exp(np.asarray(edge, np.float64) - edge.max(axis=1, keepdims=True))
    said, answered = edge.argmax(axis=1), cloud.argmax(axis=1)
    return Scene(
        margins(powers / powers.sum(axis=1, keepdims=True)),
        said != answered,
        float(np.mean(said == label)),
        float(np.mean(answered == label)),
    )


def recorded(part: str) -> Scene:
    """`part` as in tests/fixtures/README.md: "", "faded_" or "dark_"."""
    with np.load(_FIXTURE) as archive:
        edge, cloud = archive[part + "edge"], archive[part + "cloud"]
        return scene(edge.astype(np.float64), cloud, archive["labels"][: len(edge)])


def simulated(changed: bool) -> Scene:
    """Two models that find the same samples difficult; the change weakens the edge's signal and makes it noisy.

    A logit is normal noise, and for the true label `signal - slope * difficulty` more. The numbers were fitted to the
    seven figures in the module's docstring, all of which they meet within 0.7 points.
    """
    rng = np.random.default_rng(0)
    label, difficulty = rng.integers(0, 7, _SIMULATED), rng.standard_normal(_SIMULATED)

    def logits(signal: float, slope: float, noise: float) -> NDArray[np.float64]:
        values = noise * rng.standard_normal((_SIMULATED, 7))
        values[np.arange(_SIMULATED), label] += signal - slope * difficulty
        return values

    edge = logits(2.58, 0.917, 1.831) if changed else logits(2.891, 0.917, 1.0)
    cloud = logits(3.931 if changed else 4.616, 1.54, 1.0)
    return scene(1.165 * edge, cloud, label)


CALM: Mapping[str, Callable[[], Scene]] = {"pcb-bare": lambda: recorded(""), "simulated": lambda: simulated(False)}
STREAMS: Mapping[str, tuple[str, Callable[[], Scene]]] = {
    "pcb-bare faded": ("pcb-bare", lambda: recorded("faded_")),
    "pcb-bare dark": ("pcb-bare", lambda: recorded("dark_")),
    "simulated": ("simulated", lambda: simulated(True)),
}
"""By name: the calm scene that a stream begins with, and the changed one."""


class Fixed:
    """A gate's certificate, kept whatever happens."""

    def __init__(self, gate: Gate) -> None:
        self._threshold = gate.status().threshold

    def __call__(self, rng: np.random.Generator, margin: float, differs: bool) -> tuple[bool, bool]:
        sent = self._threshold is None or 1 - margin > self._threshold
        return sent, differs and not sent


class Watched:
    """A gate and its answers."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._count = 0

    def __call__(self, rng: np.random.Generator, margin: float, differs: bool) -> tuple[bool, bool]:
        """Is the sample sent, and is the counting answer the edge's although it differs?"""
        self._count += 1
        name = str(self._count)
        decision = self.gate.decide(margin, float(rng.random()), name)
        if decision.reason is not None:
            self.gate.learn(decision.score, differs, decision.reason, name)
        return decision.send, differs and decision.reason in (None, "audit")


Policy = Fixed | Watched


@dataclass(frozen=True)
class Phase:
    """What one phase of a run cost; both arrays have one entry a sample."""

    sent: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def play(policy: Policy, source: Scene, n: int, rng: np.random.Generator) -> Phase:
    """`n` samples of the scene."""
    drawn = rng.integers(0, len(source.margin), n)
    seen = [policy(rng, float(source.margin[i]), bool(source.differs[i])) for i in drawn]
    return Phase(np.array([sent for sent, _ in seen]), np.array([wrong for _, wrong in seen]))


@dataclass(frozen=True)
class Run:
    clean: Phase
    after: Phase
    false_alarms: int
    alarms: int  # after the change


def run(name: str, calm: Scene, changed: Scene, clean: int, seed: int) -> Run:
    """One stream under the policy of this name. `clean`: samples between the first certificate and the change."""
    rng = np.random.default_rng(seed)
    audit_share = 0.0 if name == "no audits" else GateSettings().audit_share
    watched = Watched(Gate(GateSettings(risk=ALPHA, confidence=CONFIDENCE, audit_share=audit_share)))
    while watched.gate.status().threshold is None:
        play(watched, calm, 100, rng)
    policy: Policy = Fixed(watched.gate) if name == "fixed" else watched
    before = watched.gate.status().alarms
    first = play(policy, calm, clean, rng)
    false = watched.gate.status().alarms - before
    after = play(policy, changed, AFTER, rng)
    return Run(first, after, false, watched.gate.status().alarms - before - false)


def summary(stream: str, policy: str, runs: list[Run]) -> Row:
    """Means over the runs of one of STREAMS, and the worst run."""
    wrong = np.stack([one.after.wrong for one in runs])
    sent = np.stack([one.after.sent for one in runs])
    late = wrong[:, -LAST:]
    return {
        "stream": stream,
        "calm": STREAMS[stream][0],
        "policy": policy,
        "risk_clean": float(np.mean([one.clean.wrong.mean() for one in runs])),
        "offload_clean": float(np.mean([one.clean.sent.mean() for one in runs])),
        "risk_all": float(wrong.mean()),
        "offload_all": float(sent.mean()),
        "risk_last": float(late.mean()),
        "risk_last_worst_run": float(late.mean(axis=1).max()),
        "offload_last": float(sent[:, -LAST:].mean()),
        "false_alarms": sum(one.false_alarms for one in runs),
        "alarms": sum(one.alarms for one in runs) / len(runs),
    }


POLICIES = ("gate", "no audits", "fixed")


def verdict(cases: list[Row], runs: int) -> Row:
    """The gate's figures on its worst stream, and whether the goals are met on all.

    Streams with one calm scene have the same clean phases, run by run; these count once.
    """
    gate = [case for case in cases if case["policy"] == "gate"]
    worst = max(gate, key=lambda case: case["risk_last"])
    clean = {case["calm"]: case["false_alarms"] for case in gate}
    false_alarms = sum(clean.values())
    return {
        "alpha": ALPHA,
        "goal": GOAL,
        **{key: worst[key] for key in ("stream", "risk_last", "risk_all", "offload_last")},
        "false_alarms": false_alarms,
        "clean_runs": runs * len(clean),
        "risk_met": worst["risk_last"] <= GOAL,
        "alarms_met": false_alarms == 0,
    }


def main() -> None:
    args = report.arguments("The gate under a change of the scene.").parse_args()
    clean = 1500 if args.quick else 4000
    cases = []
    for stream, (start, change) in STREAMS.items():
        calm, changed = CALM[start](), change()
        print(
            f"{stream}: edge {calm.edge_right:.1%} -> {changed.edge_right:.1%}, "
            f"cloud {calm.cloud_right:.1%} -> {changed.cloud_right:.1%}, "
            f"differing {calm.differs.mean():.1%} -> {changed.differs.mean():.1%}"
        )
        for policy in POLICIES:
            runs = [run(policy, calm, changed, clean, seed) for seed in range(RUNS)]
            cases.append(summary(stream, policy, runs))
    figures = verdict(cases, RUNS)
    print(f"\n{RUNS} runs each, {clean:,} clean samples, then {AFTER:,}; alpha {ALPHA:.0%}, goal {GOAL:.1%}\n")
    print(report.table(cases, [name for name in cases[0] if name != "calm"]))
    print("\n" + report.transposed([{"figure": "gate", **figures}], "figure"))
    report.write_json(args.json, "drift", {**figures, "cases": cases}, quick=args.quick)


if __name__ == "__main__":
    main()
