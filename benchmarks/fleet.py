"""Thousands of virtual devices learn together through the real state machines of `secagg/2`, on a virtual clock.

    python -m benchmarks.fleet [--quick] [--json FILE] [--devices N] [--rounds N] [--cohort N] [--buckets N]
                               [--dropout S] [--cheats S] [--bad-cloud S] [--seed N]

Every message passes as bytes between ClientRound and ServerRound; only time and network are made up. Each device has a
link, a speed, data of its own (few classes each), and vanishes before any step with the probability DROPOUT. A share of
CHEATS of them cheats: forges its signature, is in no roster, sends garbage, seals shares that do not open, votes for
another survivor set, reveals wrong shares, or contributes nonsense within its clip. In a share of BAD-CLOUD of the
rounds cloudd cheats: another model, a lowered threshold, swapped keys, a survivor set below the quorum, two sets. Such
a round must end void with every device refusing. With --buckets N (3 or more) N cohorts make one step of the model by
the trimmed mean of their sums. The seed decides everything but the keys.

    devices, rounds      of the fleet; cohort rounds that were begun
    completed, void      rounds with and without a sum
    bad_cloud            rounds in which cloudd cheated: each is void
    refused              messages that cloudd or a device refused
    exact                share of the completed rounds whose sum is the survivors' plain sum, bit for bit
    fooled               requests of a cheating cloudd that an honest device answered: must be 0
    late                 answers that came after their step's deadline
    virtual_round_s      median virtual seconds of a completed round; training takes most of them
    cpu_s_per_round      real CPU seconds of a round, all its devices and cloudd
    loss_first, loss_last, accuracy   of the global model over all devices' data
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.fleet_round import KINDS, TRICKS, Device, Fleet, Outcome, Trick, VirtualRound
from edgekit.federated.averaging import AveragingStrategy, FedAvg
from edgekit.federated.layout import Layout
from edgekit.federated.robust import Bucket, Robust, combine, split
from edgekit.federated.strategy import LocalResult, State
from edgekit.identity import generate_key
from edgekit.secagg import roster, signatures
from edgekit.secagg.messages import RoundConfig
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Roster

COLUMNS = ["devices", "rounds", "completed", "void", "refused", "exact", "virtual_round_s", "cpu_s_per_round"]
SESSION = b"virtual fleet 16"
CLASSES, FEATURES, SAMPLES = 4, 10, 40
CLIP = 2.0


def fleet(count: int, cheats: float, rng: np.random.Generator) -> Fleet:
    """`count` devices; each has samples of two classes mostly."""
    plant, devices, members = generate_key(), {}, []
    centres = rng.standard_normal((CLASSES, FEATURES))
    for _ in range(count):
        key = generate_key()
        kind = KINDS[rng.integers(len(KINDS))] if rng.random() < cheats else "honest"
        if kind != "stranger":
            members.append(roster.member(key.public_key()))
        shares = rng.dirichlet(np.full(CLASSES, 0.3))
        classes = rng.choice(CLASSES, SAMPLES, p=shares)
        node = roster.node_of(key.public_key())
        devices[node] = Device(
            node=node,
            sign=signatures.signer(generate_key() if kind == "forger" else key),
            kind=kind,
            link_s=float(rng.uniform(0.02, 0.3)),
            train_s=float(rng.lognormal(2.5, 0.8)),
            features=centres[classes] + rng.standard_normal((SAMPLES, FEATURES)),
            classes=classes,
        )
    body = Roster(plant="plant", serial=1, not_after=2.0, members=tuple(members))
    membership = roster.open_rosters(
        [roster.sign_roster(body, plant)], {"plant": plant.public_key()}, now=1.0, floors={}
    )
    return Fleet(devices, membership)


def layout() -> Layout:
    """Of a softmax regression."""
    return Layout({"bias": (CLASSES,), "weight": (CLASSES, FEATURES)})


def loss_and_gradient(
    model: NDArray[np.float32], features: NDArray[np.float64], classes: NDArray[np.int64]
) -> tuple[float, NDArray[np.float32], float]:
    """Mean cross-entropy, its gradient over the flat model, and the accuracy."""
    bias, weight = model[:CLASSES], model[CLASSES:].reshape(CLASSES, FEATURES)
    logits = features @ weight.T + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    picked = shares[np.arange(len(classes)), classes]
    error = shares.copy()
    error[np.arange(len(classes)), classes] -= 1
    error /= len(classes)
    gradient = np.concatenate([error.sum(axis=0), (error.T @ features).ravel()]).astype(np.float32)
    return float(-np.log(np.maximum(picked, 1e-12)).mean()), gradient, float((logits.argmax(axis=1) == classes).mean())


def trained(device: Device, model: NDArray[np.float32], rng: np.random.Generator) -> LocalResult:
    """Ten steps on the device's own samples; a poisoner makes something up."""
    after = model.copy()
    for _ in range(10):
        after -= np.float32(0.2) * loss_and_gradient(after, device.features, device.classes)[1]
    if device.kind == "poisoner":
        after = model + rng.standard_normal(model.size).astype(np.float32) * np.float32(100)
    return LocalResult(after - model, SAMPLES, 10, 0.2)


def simulate(
    devices: int,
    rounds: int,
    cohort: int,
    *,
    buckets: int = 1,
    dropout: float = 0.1,
    cheats: float = 0.05,
    bad_cloud: float = 0.15,
    seed: int = 1,
) -> dict[str, Any]:
    """The benchmark's row."""
    rng = np.random.default_rng(seed)
    these = fleet(devices, cheats, rng)
    strategy = AveragingStrategy(layout(), FedAvg(clip=CLIP))
    robust = Robust(kind="trimmed-mean", buckets=buckets, trim=(buckets - 1) // 3 or 1) if buckets >= 3 else None
    # cloudd's state and a device's, which only ever sees published sums
    states = [strategy.start(np.zeros(strategy.layout.size, np.float32)) for _ in range(2)]
    data = np.concatenate([one.features for one in these.devices.values()])
    classes = np.concatenate([one.classes for one in these.devices.values()])
    first = loss_and_gradient(states[0].model, data, classes)[0]
    outcomes: list[Outcome] = []
    used: set[bytes] = set()
    cpu = time.process_time()
    while len(outcomes) < rounds:
        model = states[0].digest(strategy.layout.digest, strategy.settings)
        free = [node for node in these.devices if node not in used and rng.random() < 0.7]
        chosen = [free[i] for i in rng.permutation(len(free))[: cohort * buckets]]
        if len(chosen) < cohort * buckets:
            break  # everybody has contributed to this model already
        found: list[Outcome] = []
        for members in split(chosen, buckets, rng.bytes(16)):
            used.update(members)  # a device contributes once to a model, even if its round ends void
            trick = TRICKS[rng.integers(len(TRICKS))] if rng.random() < bad_cloud else "none"
            found.append(
                _one(these, members, states[0], strategy, model, len(outcomes) + len(found), trick, dropout, rng)
            )
        outcomes += found
        advanced = [_advanced(strategy, robust, state, found) for state in states]
        if advanced[0] is not states[0]:
            used = set()
        states = advanced
        digests = {state.digest(strategy.layout.digest, strategy.settings) for state in states}
        assert len(digests) == 1, "two that applied the same sums hold different bits"
    cpu = time.process_time() - cpu
    last, _, accuracy = loss_and_gradient(states[0].model, data, classes)
    completed = [one for one in outcomes if one.total is not None]
    return {
        "devices": devices,
        "rounds": len(outcomes),
        "completed": len(completed),
        "void": len(outcomes) - len(completed),
        "bad_cloud": sum(one.trick != "none" for one in outcomes),
        "refused": sum(one.refused for one in outcomes),
        "exact": sum(one.exact for one in completed) / len(completed) if completed else None,
        "fooled": sum(one.fooled for one in outcomes),
        "late": sum(one.late for one in outcomes),
        "virtual_round_s": statistics.median(one.virtual_s for one in completed) if completed else None,
        "cpu_s_per_round": cpu / max(1, len(outcomes)),
        "loss_first": first,
        "loss_last": last,
        "accuracy": accuracy,
    }


def _one(
    these: Fleet,
    members: Sequence[bytes],
    state: State,
    strategy: AveragingStrategy,
    model: bytes,
    number: int,
    trick: Trick,
    dropout: float,
    rng: np.random.Generator,
) -> Outcome:
    cohort = [these.devices[node] for node in members]
    config = strategy.numbers.put_into(
        RoundConfig(
            session=SESSION,
            round=number,
            invited=len(cohort),
            colluders=Policy().expected_colluders(len(cohort)),
            parameters=1,
            clip=1.0,
            limit=1.0,
            max_weight=1,
            bits=32,
            prg="aes-256-ctr",
            model=model,
            rosters=these.membership.digest,
        )
    )

    def vector(device: Device) -> tuple[NDArray[np.float32], int]:
        made = strategy.contribution(state, trained(device, state.model, rng))
        return made.vector, made.weight

    return VirtualRound(these, cohort, config, vector, trick=trick, dropout=dropout, rng=rng).run()


def _advanced(strategy: AveragingStrategy, robust: Robust | None, state: State, found: Sequence[Outcome]) -> State:
    """The next state; the same one if there is no sum to apply."""
    sums = [one for one in found if one.total is not None]
    if robust is None:
        for one in sums:
            assert one.total is not None
            state = strategy.apply(state, one.total)
        return state
    if len(sums) < max(3, 2 * robust.trim + 1):
        return state
    return strategy.apply(state, combine([Bucket(one.total.mean, one.survivors) for one in sums if one.total], robust))


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--cohort", type=int)
    parser.add_argument("--buckets", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--cheats", type=float, default=0.05)
    parser.add_argument("--bad-cloud", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    if options.buckets != 1 and options.buckets < 3:
        parser.error("one cohort a step, or three and more (--buckets)")
    row = simulate(
        options.devices or (2000 if options.quick else 5000),
        options.rounds or (60 if options.quick else 200),
        options.cohort or (16 if options.quick else 32),
        buckets=options.buckets,
        dropout=options.dropout,
        cheats=options.cheats,
        bad_cloud=options.bad_cloud,
        seed=options.seed,
    )
    print(report.table([row], COLUMNS))
    print()
    print(report.transposed([{"figure": "found", **row}], "figure"))
    report.write_json(options.json, "fleet", row, quick=options.quick)
    if row["fooled"] or row["exact"] != 1.0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
