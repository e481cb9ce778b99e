"""What the strategies are for: sites whose data differ, learning together through masked sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federated_support import Site, loss_and_gradient, optimum, skewed_sites, summed, trained
from numpy.typing import NDArray

from benchmarks.secagg_cohort import Stand, config, plants
from edgekit.federated.averaging import Adaptive, AveragingStrategy, FedAvg, FedAvgM
from edgekit.federated.heads import AdditiveHead, AdditiveHeadStrategy
from edgekit.federated.layout import Layout
from edgekit.federated.nova import FedNova, NovaStrategy
from edgekit.federated.scaffold import Scaffold, ScaffoldStrategy
from edgekit.federated.strategy import Contribution, Learning, State
from edgekit.federated.sums import Room, RoundNumbers, Sum
from edgekit.secagg.policy import Policy

LAYOUT = Layout({"weight": (3, 7)})
SIZE = LAYOUT.size


def masked(contributions: list[Contribution[Any]], numbers: RoundNumbers, vanish: int = 0) -> tuple[Sum, list[int]]:
    """A real round of secagg/2; the first `vanish` devices go away before they send. (sum, who is in it)."""
    count = len(contributions)
    these = plants(count)
    configuration = numbers.put_into(config(these.membership(), count))
    stand = Stand(these, configuration, policy=Policy(min_cohort=3))
    place = dict(zip(these.nodes, range(count), strict=True))
    result = stand.run(
        {node: contributions[i].vector for node, i in place.items()},
        {node: contributions[i].weight for node, i in place.items()},
        {"masked": these.nodes[:vanish]},
    )
    survivors = [place[node] for node in result.survivors]
    return Sum.of_words(result.words, len(survivors), configuration), survivors


def losses(
    strategy: Learning[Any], sites: list[Site], rounds: int, steps: list[int], rate: float, chosen: int | None = None
) -> NDArray[Any]:
    """The global loss after each round; `chosen` sites a round, all by default."""
    rng = np.random.default_rng(0)
    state, memory = strategy.start(np.zeros(SIZE, np.float32)), [None] * len(sites)
    found = []
    for _ in range(rounds):
        made = {}
        for place in rng.permutation(len(sites))[: chosen or len(sites)]:
            result = trained(sites[place], strategy.term(state, memory[place]), steps[place], rate)
            made[place] = strategy.contribution(state, result, memory[place])
        state = strategy.apply(state, summed(list(made.values()), strategy.numbers))
        for place, one in made.items():
            memory[place] = one.memory
        found.append(loss_and_gradient(state.model, sites)[0])
    return np.array(found)


@pytest.mark.parametrize("vanish", [0, 2])
def test_masked_rounds_are_the_plain_average_within_the_code(vanish: int) -> None:
    sites = skewed_sites(7, alpha=0.2, seed=1)
    strategy = AveragingStrategy(LAYOUT, FedAvg(clip=20.0))
    state, plain = strategy.start(np.zeros(SIZE, np.float32)), np.zeros(SIZE)
    for _ in range(3):
        made = [strategy.contribution(state, trained(site, strategy.term(state), 10, 0.3)) for site in sites]
        total, survivors = masked(made, strategy.numbers, vanish)
        assert len(survivors) == 7 - vanish
        update = np.mean([made[i].vector.astype(np.float64) for i in survivors], axis=0)
        np.testing.assert_allclose(total.mean, update, rtol=1e-6, atol=total.step)
        plain += update
        state = strategy.apply(state, total)
    np.testing.assert_allclose(state.model, plain, atol=1e-4)
    assert loss_and_gradient(state.model, sites)[0] < 0.8 * loss_and_gradient(np.zeros(SIZE), sites)[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_scaffold_reaches_the_optimum_where_fedavg_stops_short_of_it(seed: int) -> None:
    sites = skewed_sites(8, alpha=0.05, seed=seed)
    least, steps = optimum(sites, SIZE), [30] * 8
    fedavg = losses(AveragingStrategy(LAYOUT, FedAvg(clip=50.0)), sites, 20, steps, 0.2)[-1]
    settings = Scaffold(clip=50.0, devices=8, control_scale=30 * 0.2)
    scaffold = losses(ScaffoldStrategy(LAYOUT, settings), sites, 20, steps, 0.2)[-1]
    assert fedavg - least > 5e-3
    assert scaffold - least < (fedavg - least) / 100


@pytest.mark.parametrize("seed", [1, 2])
def test_fedprox_wanders_less_than_fedavg_where_few_very_different_sites_take_part_each_time(seed: int) -> None:
    sites = skewed_sites(12, alpha=0.05, seed=seed)
    least = optimum(sites, SIZE)
    found = []
    for mu in (0.0, 1.0):
        strategy = AveragingStrategy(LAYOUT, FedAvg(clip=50.0, proximal=mu))
        found.append(losses(strategy, sites, 20, [60] * 12, 0.5, chosen=3)[-10:].mean())
    assert found[1] - least < 0.5 * (found[0] - least)


@pytest.mark.parametrize("seed", [1, 2])
def test_fednova_is_nearer_the_optimum_where_sites_make_unequal_numbers_of_steps(seed: int) -> None:
    sites = skewed_sites(8, alpha=0.05, seed=seed)
    least, steps = optimum(sites, SIZE), [2] * 4 + [40] * 4
    fedavg = losses(AveragingStrategy(LAYOUT, FedAvg(clip=50.0)), sites, 25, steps, 0.1)[-1]
    nova = losses(NovaStrategy(LAYOUT, FedNova(clip=50.0, most_steps=40)), sites, 25, steps, 0.1)[-1]
    assert nova - least < 0.5 * (fedavg - least)


@pytest.mark.parametrize(
    "settings",
    [
        FedAvgM(clip=50.0, momentum=0.5),
        Adaptive(kind="adagrad", clip=50.0, learning_rate=0.3),
        Adaptive(kind="adam", clip=50.0, learning_rate=0.2),
        Adaptive(kind="yogi", clip=50.0, learning_rate=0.2),
    ],
)
def test_the_servers_optimisers_learn(settings: FedAvgM | Adaptive) -> None:
    sites = skewed_sites(6, alpha=0.3, seed=2)
    found = losses(AveragingStrategy(LAYOUT, settings), sites, 25, [5] * 6, 0.1)
    start, least = loss_and_gradient(np.zeros(SIZE), sites)[0], optimum(sites, SIZE)
    assert found[-1] - least < 0.1 * (start - least)


def test_one_masked_round_gives_the_head_of_all_sites_samples_and_a_second_one_removes_a_site() -> None:
    labels, sites = ("a", "b", "c"), skewed_sites(5, alpha=0.1, seed=3)
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=labels, features=6, room=Room(invited=5)))
    codes = [strategy.codes(site.features[:, :6], site.classes) for site in sites]
    state = strategy.start()
    first = [strategy.contribution(state, one, None) for one in codes]
    state = strategy.apply(state, masked(first, strategy.numbers)[0])
    np.testing.assert_array_equal(state.model, sum(codes))
    head = strategy.head(state)
    everything = np.concatenate([site.features[:, :6] for site in sites])
    classes = np.concatenate([site.classes for site in sites])
    assert (head.logits(everything).argmax(axis=1) == classes).mean() > 0.75
    wanted = [np.zeros_like(codes[0]), *codes[1:]]
    second = [strategy.contribution(state, one, made.memory) for one, made in zip(wanted, first, strict=True)]
    state = strategy.apply(state, masked(second, strategy.numbers)[0])
    np.testing.assert_array_equal(state.model, sum(codes[1:]))


def test_a_state_of_a_device_that_was_away_is_the_same_once_it_has_applied_what_it_missed() -> None:
    sites = skewed_sites(4, alpha=0.3, seed=1)
    strategy = AveragingStrategy(LAYOUT, FedAvgM(clip=50.0))
    here: State = strategy.start(np.zeros(SIZE, np.float32))
    published = []
    for _ in range(3):
        made = [strategy.contribution(here, trained(site, strategy.term(here), 3, 0.1)) for site in sites]
        published.append(summed(made, strategy.numbers))
        here = strategy.apply(here, published[-1])
    there = strategy.start(np.zeros(SIZE, np.float32))
    for total in published:
        there = strategy.apply(there, total)
    assert there.digest(LAYOUT.digest, strategy.settings) == here.digest(LAYOUT.digest, strategy.settings)
