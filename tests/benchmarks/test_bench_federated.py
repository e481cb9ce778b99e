"""The federation benchmark's own arithmetic, and one small federation; its figures are for a quiet machine."""

from __future__ import annotations

import json
import secrets
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.federated import SETTINGS, convergence, f1, pooled, shrunk, summary, verdict
from benchmarks.federated_choice import average_precision, figures
from benchmarks.federated_data import NAMES, Factories, Name, Sample, deal, folded, load
from benchmarks.federated_plot import Panel, band, picture
from benchmarks.federated_round import Cohort, Course, federated, masked_figures
from benchmarks.federated_site import LOCAL, PLAN, Machine, Network, Site, in_one_place
from cloudd.federation.definition import read
from edgekit.federated.averaging import FedAvg
from edgekit.federated.plan import Plan
from edgekit.federated.privacy import Privacy
from edgekit.federated.scaffold import Scaffold
from edgekit.federated.sums import value_numbers
from edgekit.vision.images import encode_png
from tests.support.federation import definition

STATISTICS = ("*.norm.mean", "*.norm.variance")
NETWORK = Network(side=16, width=0.25)
DEVICE = msgspec.structs.replace(LOCAL, steps=2, batch=4, learning_rate=3e-3, weight_decay=0.0)


def sample(label: int, board: str, *, judges: bool = False, factory: str = "a", seed: int = 0) -> Sample:
    """Dark or bright, with noise."""
    pixels = np.random.default_rng([seed, label]).normal(60 + 130 * label, 20, (16, 16))
    return Sample(encode_png(np.clip(pixels, 0, 255).astype(np.uint8)), label, factory, board, judges)


def boards(count: int, factory: str = "a") -> list[Sample]:
    return [
        sample(at % 2, f"{factory}{at // 2}", judges=at // 2 % 3 == 2, factory=factory, seed=at)
        for at in range(2 * count)
    ]


def row(case: str, score: float, seed: int = 0, **other: Any) -> dict[str, Any]:
    return {"case": case, "seed": seed, "f1": score, "curve": [[10, 0.1], [20, score]], "epsilon": None,
            "code_error": 0.4, **other}  # fmt: skip


def test_f1_is_that_of_the_defect_or_the_mean_of_all_labels() -> None:
    confusion = np.array([[80, 2], [3, 15]])
    assert f1(confusion, 1) == pytest.approx(2 * 15 / (18 + 17))
    assert f1(confusion, None) == pytest.approx((2 * 15 / 35 + 2 * 80 / 165) / 2)
    assert f1(np.array([[5, 0], [5, 0]]), 1) == 0.0
    assert f1(np.array([[5, 0], [0, 0]]), 1) == 0.0  # neither occurs nor is said


def test_whole_boards_are_dealt_and_every_picture_once() -> None:
    samples = boards(7)
    parts = deal(samples, 3)
    assert sorted(len(part) for part in parts) == [4, 4, 6]
    names = [{one.board for one in part} for part in parts]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    with pytest.raises(ValueError, match="7 boards cannot be dealt to 8 devices"):
        deal(samples, 8)


def test_folds_are_of_the_boards_that_teach_and_each_judges_once() -> None:
    factories = Factories("solder-tht", ("normal", "defect"), 1, (*boards(9, "a"), *boards(9, "b")))
    found = [folded(factories, fold, 3) for fold in range(3)]
    teach = {one.board for one in factories.samples if not one.judges}
    judges = [{one.board for one in fold.samples if one.judges} for fold in found]
    assert judges[0] | judges[1] | judges[2] == teach and sum(map(len, judges)) == len(teach)
    assert all({one.board for one in fold.samples} == teach for fold in found)


def test_the_learning_rates_go_up_and_down_again() -> None:
    found = in_one_place(LOCAL, 100)
    peak = LOCAL.learning_rate
    assert len(found) == 100 and max(found) <= peak and found[0] < found[10] and 0 < found[-1] < 0.01 * peak


def test_average_precision_is_the_mean_of_the_precision_at_each_defect() -> None:
    assert average_precision(np.array([1, 0, 1, 0]), np.array([3.0, 2.0, 1.0, 0.0])) == pytest.approx((1 + 2 / 3) / 2)
    f1_found, precision, loss = figures([(1, 2.0), (0, -2.0), (1, -1.0), (0, 1.0)])
    assert f1_found == pytest.approx(0.5) and precision == pytest.approx((1 + 2 / 3) / 2)
    assert loss == pytest.approx(np.log1p(np.exp([-2.0, -2.0, 1.0, 1.0])).mean())


def test_judgements_of_factories_alone_are_added_up_look_by_look() -> None:
    one = Course([(10, np.array([[1, 0], [0, 2]])), (20, np.array([[1, 0], [1, 1]]))])
    both = pooled([one, one])
    assert [shown for shown, _ in both.looks] == [20, 40]
    assert both.last.tolist() == [[2, 0], [2, 2]]


def test_the_summary_has_mean_spread_and_range_of_each_case() -> None:
    first, second = summary([row("x/alone", 0.5), row("x/centralised", 0.9), row("x/alone", 0.7, 1, epsilon=8.0)])
    assert (first["f1_mean"], first["f1_spread"]) == pytest.approx((0.6, 0.2 / 2**0.5))
    assert (first["f1_min"], first["f1_max"], first["seeds"], first["epsilon"]) == (0.5, 0.7, 2, 8.0)
    assert second["f1_spread"] == 0.0 and second["epsilon"] is None


@pytest.mark.parametrize(("masked", "met"), [(0.89, True), (0.87, False)])
def test_the_goal_is_met_where_every_product_comes_within_two_points(masked: float, met: bool) -> None:
    rows = [
        row(f"{name}/{kind}", score)
        for name, score in (("x", masked), ("y", 0.95))
        for kind, score in (("alone", 0.5), ("federated-plain", 0.9), ("federated-secagg", score), ("centralised", 0.9))
    ]
    found = verdict(rows)
    assert found["gap_met"] is met
    assert found["gap_to_centralised"] == pytest.approx({"x": 0.9 - masked, "y": -0.05})
    assert found["secagg_minus_plain"] == pytest.approx({"x": masked - 0.9, "y": 0.05})


def test_the_band_is_mean_and_range_and_wants_equal_places() -> None:
    mean, low, high = band([[(1, 0.2), (2, 0.4)], [(1, 0.6), (2, 0.4)]])
    assert mean == [(1, pytest.approx(0.4)), (2, pytest.approx(0.4))]
    assert low[0] == (1, 0.2) and high[0] == (1, 0.6)
    with pytest.raises(ValueError, match="different places"):
        band([[(1, 0.2)], [(2, 0.2)]])


def test_the_picture_is_svg_with_a_line_and_a_band_for_each_name() -> None:
    drawn = picture([Panel("a < b", {"one": [[(0, 0.0), (5, 1.0)]], "two": [[(0, 0.5), (5, 0.5)]]})], "x", "F1")
    root = ET.fromstring(drawn)
    tags = [child.tag.rpartition("}")[2] for child in root.iter()]
    assert tags.count("polyline") == 2 and tags.count("polygon") == 2
    assert "a < b" in [child.text for child in root.iter()]
    rows = [row(f"x/{kind}", 0.9, seed) for kind in ("centralised", "federated-plain") for seed in (0, 1)]
    assert convergence(rows).count("<polyline") == 2


def test_a_masked_sum_is_the_plain_one_within_half_a_code_a_device() -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.normal(0, 0.1, 50).astype(np.float32) for _ in range(5)]
    total = Cohort(5).sum(value_numbers(50, 10.0, 1.0, 1), bytes(32), vectors)
    off = np.abs(total.codes * total.step - np.sum(vectors, axis=0, dtype=np.float64)).max()
    assert total.survivors == 5 and off <= (5 / 2 + 0.1) * total.step


def test_confusion_matrices_come_out_of_a_masked_sum_exactly() -> None:
    ones = [np.array([[at, 1], [0, 2 * at]]) for at in range(6)]
    assert masked_figures(Cohort(6), ones, bytes(32)).tolist() == [[15, 6], [0, 30]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


def machine(folder: Path, plan: Plan = PLAN, **local: Any) -> Machine:
    place = folder / secrets.token_hex(4)
    return Machine(place, NETWORK, msgspec.structs.replace(DEVICE, **local), 2, 0, plan=plan)


def sites(machine: Machine) -> list[Site]:
    found = []
    for number, part in enumerate(deal(boards(15), 5)):
        teach, judge = ([one for one in part if one.judges == judges] for judges in (False, True))
        found.append(Site(machine, teach, judge, seed=number))
    return found


def run(machine: Machine, cohort: Cohort | None, rounds: int = 4) -> Course:
    return federated(machine, sites(machine), rounds=rounds, looks=2, cohort=cohort)


def test_a_masked_federation_learns_what_a_plain_one_does(folder: Path) -> None:
    made = machine(folder)
    plain, masked = run(made, None), run(made, Cohort(5))
    assert 0 < masked.code_error <= 5 / 2 + 0.1 and plain.code_error == 0.0
    assert plain.weights.keys() == masked.weights.keys() and not any("variance" in name for name in plain.weights)
    for name, tensor in plain.weights.items():
        np.testing.assert_allclose(masked.weights[name], tensor, atol=2e-4)
    a_round = 2 * sum(site.batch for site in sites(made))
    assert [shown for shown, _ in plain.looks] == [shown for shown, _ in masked.looks] == [2 * a_round, 4 * a_round]
    assert plain.last.sum() == sum(one.judges for one in boards(15))


def test_the_same_seeds_give_the_same_plain_federation(folder: Path) -> None:
    made = machine(folder)
    one, two = (run(made, None, 8) for _ in range(2))
    assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert f1(one.last, 1) > 0.9


def test_rounds_of_a_site_that_is_alone_are_one_training(folder: Path) -> None:
    """The shared weights come back as they went; moments and statistics stay where they are."""
    made = machine(folder, batch=8)
    alone, other = (Site(made, boards(9), [], seed=0) for _ in range(2))
    alone.learn({}, [0.01] * 6)
    for _ in range(3):
        other.learn({name: other.state[name] for name in made.trained}, [0.01] * 2)
    for name, tensor in alone.state.items():
        np.testing.assert_array_equal(other.state[name], tensor)
    fresh = Site(machine(folder, batch=8, moments="fresh"), boards(9), [], seed=0)
    for _ in range(3):
        fresh.learn({}, [0.01] * 2)
    assert fresh.state["optimiser.step"] == 2 and alone.state["optimiser.step"] == 6


def test_a_proximal_term_holds_a_site_near_the_published_model(folder: Path) -> None:
    def moved(proximal: float) -> float:
        plan = Plan(strategy=FedAvg(clip=20.0, proximal=proximal), personal=STATISTICS)
        made = machine(folder, plan, optimiser="sgd")
        site = Site(made, boards(9), [], seed=0)
        site.learn({}, [0.02] * 30, near_start=proximal > 0)
        return sum(float(np.sum((site.state[name] - made.first[name]) ** 2)) for name in made.trained)

    assert moved(5.0) < 0.5 * moved(0.0)


def test_scaffold_takes_its_correction_off_and_remembers(folder: Path) -> None:
    plan = Plan(strategy=Scaffold(clip=20.0, devices=5, control_scale=0.02), personal=STATISTICS)
    found = run(machine(folder, plan, optimiser="sgd", moments="fresh"), None)
    assert all(np.isfinite(tensor).all() for tensor in found.weights.values())


def test_noise_is_charged_for_every_round(folder: Path) -> None:
    plan = Plan(strategy=FedAvg(clip=1.0), personal=STATISTICS, privacy=Privacy(noise_multiplier=2.0))
    made = machine(folder, plan)
    one, two = run(made, Cohort(5), 2), run(made, Cohort(5), 4)
    assert one.epsilon is not None and two.epsilon is not None and 0 < one.epsilon < two.epsilon


def test_a_head_learns_on_convolutions_that_stay(folder: Path, tmp_path: Path) -> None:
    base = {name: np.full(shape, 0.5, np.float32) for name, shape in machine(folder).shapes.items()}
    head = msgspec.structs.replace(DEVICE, trainable=r"\.norm\.|^head\.")
    frozen = Machine(tmp_path / "plan", NETWORK, head, 2, 1, base=base)
    assert not any(".conv." in name for name in frozen.shapes)
    assert frozen.first["stage1.norm.scale"] == pytest.approx(0.5)
    assert frozen.first["head.linear.weight"] != pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_s_settings_are_a_job_that_cloudd_accepts(name: Name) -> None:
    setting = SETTINGS[name]
    tables = {"local": setting.local, "plan": setting.plan}
    local, plan = (_toml(key, msgspec.to_builtins(value)) for key, value in tables.items())
    found, read_plan = read(definition(None, local + plan, rounds=setting.rounds))
    assert (found.local, read_plan, found.rounds) == (setting.local, setting.plan, setting.rounds)


def _toml(name: str, table: dict[str, Any]) -> str:
    inner = {key: value for key, value in table.items() if isinstance(value, dict) and value}
    lines = [
        f"{key} = {json.dumps(value)}" for key, value in table.items() if value not in (None, {}) and key not in inner
    ]
    return "\n".join([f"[{name}]", *lines, *(_toml(f"{name}.{key}", value) for key, value in inner.items()), ""])


def test_the_real_factories_differ_and_share_no_board(real_data: Path) -> None:
    for name in NAMES:
        factories = load(name, real_data)
        assert len(factories.names) == {"solder-tht": 3, "solar-el": 2, "pcb-bare": 4}[name]
        for factory in factories.names:
            teach, judge = (factories.of(factory, judges=judges) for judges in (False, True))
            assert not {one.board for one in teach} & {one.board for one in judge}
            setting = SETTINGS[name]
            dealt = deal(teach, setting.devices)
            assert min(map(len, dealt)) >= setting.local.batch and len(deal(judge, setting.devices)) == setting.devices
    small = shrunk(load("solar-el", real_data), NETWORK)
    assert len(small.samples) == 201 and len(small.samples[0].data) < 1000
