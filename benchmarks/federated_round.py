"""A federation in one process: real strategies and real `secagg/2` state machines around sites that really train."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated_site import Confusion, Machine, Site, Tensors, in_one_place
from benchmarks.secagg_cohort import Plants, Stand, config, plants
from edgekit.federated import evaluation
from edgekit.federated.budget import Account, Budget
from edgekit.federated.course import rates
from edgekit.federated.layout import Layout, Vector
from edgekit.federated.privacy import Mechanism, noise_sources
from edgekit.federated.strategy import Learning, LocalResult, State
from edgekit.federated.sums import Mean, Room, RoundNumbers, Sum
from edgekit.secagg import parameters
from edgekit.secagg.client import ClientRound
from edgekit.secagg.ledger import MemoryLedger
from edgekit.secagg.messages import RoundConfig
from edgekit.secagg.policy import Policy

DELTA = 1e-5
"""Of differential privacy: far below one in the number of devices."""


class _Stand(Stand):
    """Whose devices hold the state that the round is for."""

    def client(self, node: bytes, configuration: RoundConfig | None = None, model: bytes = b"") -> ClientRound:
        return super().client(node, configuration, model or self.config.model)


class Cohort:
    """So many devices with their keys and ledgers, and the rosters that name them. Their policy is the default one."""

    def __init__(self, devices: int) -> None:
        self.plants: Plants = plants(devices)
        self.colluders = Policy().expected_colluders(devices)
        self._ledgers = {node: MemoryLedger() for node in self.plants.nodes}
        self._session = secrets.token_bytes(16)
        self._round = 0

    @property
    def noise_sources(self) -> int:
        """Honest survivors that every sum has at least."""
        count = len(self.plants.nodes)
        return noise_sources(count, self.colluders, parameters.complete(count, self.colluders))

    def sum(self, numbers: RoundNumbers, model: bytes, vectors: Sequence[Vector]) -> Sum:
        """One whole round, every message as bytes. `model`: digest of the state that all hold. Raises Refusal, Void."""
        self._round += 1
        proposed = config(self.plants.membership(), len(vectors), session=self._session, round=self._round, model=model)
        proposed = numbers.put_into(proposed)
        numbers.check(proposed)
        stand = _Stand(self.plants, proposed, ledgers=self._ledgers)
        result = stand.run(dict(zip(self.plants.nodes, vectors, strict=True)))
        return Sum.of_words(result.words, len(result.survivors), proposed)


@dataclass
class Course:
    """How a training went: (pictures shown so far on all sites, what the model said) at each look."""

    looks: list[tuple[int, Confusion]] = field(default_factory=list)
    weights: Tensors = field(default_factory=dict)  # the shared ones at the end
    code_error: float = 0.0  # codes by which a masked sum differed from the sum of what went in, at most
    epsilon: float | None = None  # spent by each device, at DELTA

    @property
    def last(self) -> Confusion:
        """At the end."""
        return self.looks[-1][1]


def together(machine: Machine, site: Site, shown: int, looks: int) -> Course:
    """All pictures in one place, or those of one factory: no rounds, no averages."""
    course = Course()
    schedule = in_one_place(machine.local, max(1, shown // site.batch))
    for part in np.array_split(np.array(schedule), looks):
        site.learn({}, part.tolist())
        done = (course.looks[-1][0] if course.looks else 0) + len(part) * site.batch
        course.looks.append((done, site.judged({})))
    course.weights = site.weights()
    return course


def federated(machine: Machine, sites: Sequence[Site], *, rounds: int, looks: int, cohort: Cohort | None) -> Course:
    """As many rounds of the machine's plan; all sites take part in each. `cohort` None: plain means, nothing masked.

    Sites judge with their personal tensors. Of a masked federation the last figures come out of a masked sum as well.
    """
    plan = machine.plan
    strategy = plan.build(dict(machine.shapes))
    state = strategy.start(strategy.layout.flatten(machine.first))
    mechanism = plan.mechanism(strategy, Room(invited=len(sites)))
    course, account, shown = Course(), Account(), 0
    looked = {round((at + 1) * rounds / looks) for at in range(looks)}
    for number in range(1, rounds + 1):
        part = rates(machine.local, number - 1, rounds, machine.local.steps)
        vectors, memories = [], []
        for site in sites:
            made = _contribution(strategy, state, site, part)
            vectors.append(made.vector)
            memories.append(made.memory)
            shown += len(part) * site.batch
        if cohort is None:
            state = strategy.apply(state, Mean(_mean(vectors), len(vectors)))
        else:
            name = number.to_bytes(4, "big")
            state, account = _masked(strategy, state, mechanism, cohort, vectors, account, name, course)
        for site, memory in zip(sites, memories, strict=True):
            site.memory = memory
        if number in looked:
            shared = strategy.layout.unflatten(state.model)
            course.looks.append((shown, np.sum([site.judged(shared) for site in sites], axis=0)))
    course.weights = strategy.layout.unflatten(state.model)
    if mechanism is not None:
        course.epsilon = account.epsilon(DELTA)
    if cohort is not None:
        found = masked_figures(cohort, [site.judged(course.weights) for site in sites], state.digest(b"", plan))
        assert np.array_equal(found, course.last), "the masked sum of confusion matrices is not their sum"
    return course


def masked_figures(cohort: Cohort, confusions: Sequence[Confusion], model: bytes) -> Confusion:
    """The devices' confusion matrices, added up behind masks."""
    labels = tuple(f"label {number}" for number in range(len(confusions[0])))
    settings = evaluation.Evaluation(labels=labels, room=Room(invited=len(confusions)))
    vectors = [evaluation.contribution(settings, one, 0.0).vector for one in confusions]
    return evaluation.figures(settings, cohort.sum(evaluation.numbers(settings), model, vectors)).confusion


def _contribution(strategy: Learning[Any], state: State, site: Site, part: Sequence[float]) -> Any:
    layout: Layout = strategy.layout
    term = strategy.term(state, site.memory)
    correction = layout.unflatten(term.correction) if term.correction is not None else None
    site.learn(layout.unflatten(state.model), part, correction, near_start=term.proximal > 0)
    delta = layout.flatten(site.state) - state.model
    result = LocalResult(delta, site.pictures, len(part), float(np.mean(part)))
    return strategy.contribution(state, result, site.memory)


def _masked(
    strategy: Learning[Any],
    state: State,
    mechanism: Mechanism | None,
    cohort: Cohort,
    vectors: Sequence[Vector],
    account: Account,
    name: bytes,
    course: Course,
) -> tuple[State, Account]:
    model = state.digest(strategy.layout.digest, strategy.settings)
    if mechanism is None:
        total = cohort.sum(strategy.numbers, model, vectors)
        off = np.abs(total.codes * total.step - np.sum(np.stack(vectors), axis=0, dtype=np.float64)).max() / total.step
        course.code_error = max(course.code_error, float(off))
        return strategy.apply(state, total), account
    account = account.charge(mechanism.cost, _UNBOUNDED, name)
    hidden = [mechanism.hide(one, cohort.noise_sources, secrets.token_bytes(32)) for one in vectors]
    return strategy.apply(state, mechanism.mean(cohort.sum(mechanism.numbers, model, hidden))), account


_UNBOUNDED = Budget(epsilon=1e3, delta=DELTA)  # the benchmark asks what a noise costs, not whether to pay it


def _mean(vectors: Sequence[Vector]) -> NDArray[np.float32]:
    return np.asarray(np.mean(np.stack(vectors), axis=0, dtype=np.float64), np.float32)
