"""The arithmetic of benchmarks.collab, and what its boards are; its figures need trained models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import collab, collab_boards, collab_rules, collab_sweep
from benchmarks.collab_boards import CLEAN, IGNORED, PIPELINE
from edgekit.messages import DecidedRegion, Decision, Verdict
from edgekit.regions.mosaic import QUALITY, Mosaic, whole
from edgekit.services import HardSamples, Regions, parse_service
from edgekit.vision.images import decode
from edgekit.vision.pipeline import regions

OPEN, SHORT = 1, 2
TILES = np.array(regions(PIPELINE, 640, 640))


def board(*boxes: tuple[float, float, float, float, int]) -> collab_boards.Frame:
    return collab_boards.frame("b", np.full((640, 640), 255, np.uint8), list(boxes))


# --- frames and their truth ----------------------------------------------------------------------------------------


def test_a_defect_belongs_to_the_nearest_tile_and_its_neighbours_are_ignored() -> None:
    frame = board((290, 300, 320, 330, OPEN))
    (home,) = np.flatnonzero(frame.truth == OPEN)
    assert np.abs(TILES[home].reshape(2, 2).mean(axis=0) - (305, 315)).max() <= 24
    touched = (TILES[:, 0] < 320) & (TILES[:, 2] > 290) & (TILES[:, 1] < 330) & (TILES[:, 3] > 300)
    assert set(np.flatnonzero(frame.truth == IGNORED)) == set(np.flatnonzero(touched)) - {home}
    assert home in frame.holders[0] and not frame.good


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 600), st.integers(1, 6)), max_size=8))
def test_no_tile_that_shows_a_defect_is_clean_and_every_defect_is_held(places: list[tuple[int, int, int]]) -> None:
    frame = board(*((x, y, x + 40, y + 40, label) for x, y, label in places))
    for (x, y, _), held in zip(places, frame.holders, strict=True):
        touched = (TILES[:, 0] < x + 40) & (TILES[:, 2] > x) & (TILES[:, 1] < y + 40) & (TILES[:, 3] > y)
        assert not (frame.truth[touched] == CLEAN).any()
        assert held and touched[held].all()
    assert set(np.unique(frame.truth)) - {CLEAN, IGNORED} <= {label for *_, label in places}


def test_of_two_defects_in_one_tile_the_nearer_one_names_it() -> None:
    left, top = TILES[14][:2]
    near, far = (left + 22, top + 22, left + 42, top + 42, SHORT), (left + 2, top + 2, left + 34, top + 34, OPEN)
    for boxes in ((near, far), (far, near)):
        assert board(*boxes).truth[14] == SHORT


def test_a_patch_with_half_a_defect_teaches_nothing() -> None:
    defects = [(100.0, 100.0, OPEN), (160.0, 100.0, SHORT)]
    assert collab_boards.patch_label((100, 100), defects) == OPEN
    assert collab_boards.patch_label((155, 100), defects) == SHORT
    assert collab_boards.patch_label((100, 132), defects) is None
    assert collab_boards.patch_label((100, 300), defects) == CLEAN


@pytest.mark.real_data
def test_the_parts_share_no_board_and_hold_every_label(real_data: Path) -> None:
    boards = collab_boards.load(real_data)
    names = [{frame.name.split("_")[0] for frame in part} for part in (boards.calibration, boards.test)]
    assert (len(names[0]), len(names[1])) == (12, 20) and not names[0] & names[1]
    every = set(range(7))
    assert set(boards.models.train_y.tolist()) == every
    for part in (boards.calibration, boards.test):
        truth = np.stack([frame.truth for frame in part])
        assert set(truth[truth >= 0].tolist()) == every and truth.shape[1] == len(TILES) <= 256
        assert sum(frame.good for frame in part) * 2 == len(part)
    again = collab_boards.load(real_data)
    assert [frame.data for frame in again.test] == [frame.data for frame in boards.test]
    assert np.array_equal(again.models.train_x, boards.models.train_x)


# --- what is computed from answers ---------------------------------------------------------------------------------


def test_accuracy_weighs_labels_alike_and_leaves_ignored_tiles_out() -> None:
    truth = np.array([[CLEAN, CLEAN, CLEAN, OPEN, IGNORED]])
    assert collab_rules.balanced_accuracy(np.array([[0, 0, 0, 0, 5]]), truth) == 0.5
    assert collab_rules.balanced_accuracy(np.array([[0, 0, 0, OPEN, 5]]), truth) == 1.0


def test_escape_and_overkill_are_counted_by_defects_tiles_and_boards() -> None:
    bad, good = board((290, 300, 320, 330, OPEN), (20, 20, 40, 40, SHORT)), board()
    said = np.zeros((2, len(TILES)), int)
    found = collab_rules.figures(said, [bad, good])
    assert (found["escape_rate"], found["escape_boards"]) == (1.0, 1.0)
    assert (found["overkill_rate"], found["overkill_boards"]) == (0.0, 0.0)
    said[0, bad.holders[0][0]] = SHORT  # another label, but no good board leaves
    said[1, 7] = OPEN
    found = collab_rules.figures(said, [bad, good])
    assert (found["escape_rate"], found["escape_boards"]) == (0.5, 0.0)
    assert found["overkill_boards"] == 1.0
    clean = (np.stack([bad.truth, good.truth]) == CLEAN).sum()
    assert found["overkill_rate"] == pytest.approx(1 / clean)


EDGE = np.array([[0, 0], [1, 0], [0, 2], [0, 0]])
CLOUD = np.array([[1, 0], [1, 0], [0, 2], [0, 1]])
TRUTH = np.array([[1, 0], [1, 0], [0, 2], [0, 1]])
COST = np.array([10.0, 20.0, 30.0, 40.0])


def test_a_curve_goes_from_nobody_asked_to_everybody_and_frames_of_one_hardness_go_together() -> None:
    points = collab_rules.curve(np.array([3.0, 1.0, 1.0, 2.0]), COST, EDGE, CLOUD, TRUTH)
    assert [point.asked.tolist() for point in points] == [
        [False] * 4,
        [True, False, False, False],
        [True, False, False, True],
        [True] * 4,
    ]
    assert [point.bytes for point in points] == [0, 10, 50, 100]
    assert points[2].accuracy == points[3].accuracy == 1.0 > points[1].accuracy > points[0].accuracy


def test_the_cheapest_threshold_reaches_the_accuracy_or_there_is_none() -> None:
    points = collab_rules.curve(np.array([3.0, 1.0, 1.0, 2.0]), COST, EDGE, CLOUD, TRUTH)
    found = collab_rules.cheapest(points, 1.0)
    assert found is not None and found.bytes == 50 and found.share == 0.5
    assert collab_rules.cheapest(points[:2], 1.0) is None


def test_the_oracle_asks_first_where_the_cloud_helps_most_for_its_bytes() -> None:
    order = np.argsort(-collab_rules.oracle(EDGE, CLOUD, TRUTH, COST))
    assert order[0] == 0 and order[1] == 3


@given(st.integers(0, 2**32 - 1))
def test_regions_in_hindsight_never_need_more_than_the_regions_that_differ_and_those_before_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edge = looked(rng.integers(0, 3, (6, 5)), rng.random((6, 5)))
    cloud = rng.integers(0, 3, (6, 5))
    truth = rng.integers(0, 3, (6, 5))
    wanted = collab_rules.balanced_accuracy(cloud, truth)
    share = collab_rules.region_share(edge, cloud, truth, wanted)
    assert share is not None
    hardest = np.zeros(30, bool)
    hardest[np.argsort(edge.margin, axis=None, kind="stable")[: round(share * 30)]] = True
    said = collab_rules.mixed(hardest.reshape(6, 5), edge.label, cloud)
    assert collab_rules.balanced_accuracy(said, truth) >= wanted
    if share:
        fewer = np.zeros(30, bool)
        fewer[np.argsort(edge.margin, axis=None, kind="stable")[: round(share * 30) - 1]] = True
        said = collab_rules.mixed(fewer.reshape(6, 5), edge.label, cloud)
        assert collab_rules.balanced_accuracy(said, truth) < wanted


def looked(label: np.ndarray[Any, Any], margin: np.ndarray[Any, Any]) -> collab_rules.Looked:
    return collab_rules.Looked(label, margin / 2 + 0.5, margin, label.max(axis=1), margin.min(axis=1))


def test_every_rule_asks_a_board_with_a_doubtful_tile_before_one_without() -> None:
    label = np.array([[0, 0, 0], [OPEN, 0, 0]])
    margin = np.array([[0.9, 0.9, 0.9], [0.0, 0.9, 0.9]])
    for name, rule in collab_rules.RULES.items():
        hardness = rule(looked(label, margin))
        assert hardness.shape == (2,) and hardness[1] > hardness[0], name


# --- the benchmark itself ------------------------------------------------------------------------------------------


def test_the_services_look_at_the_same_tiles_as_the_sweep_and_regions_travel_like_whole_boards() -> None:
    models = SimpleNamespace(edge=SimpleNamespace(ref="small@1"), cloud=SimpleNamespace(ref="large@1"))
    regions = Regions(clean="clean", most=256)
    for gate in (HardSamples(risk=0.002), HardSamples(mode="filter", filter="CloudOnly"), HardSamples(mode="budget")):
        definition = parse_service(collab.service("s", models, gate, regions if gate.mode == "risk" else None), "x")
        assert definition.pipeline == PIPELINE
        assert (definition.model, definition.hard_samples.answer_model) == ("small@1", "large@1")
    assert regions.quality == QUALITY


def setting(edge: np.ndarray[Any, Any]) -> collab.Setting:
    labels = ["clean", "open", "short", "mousebite", "spur", "copper", "pin-hole"]
    margin = np.ones(edge.shape)
    said = collab_rules.Looked(edge, margin, margin, edge.max(axis=1), margin.min(axis=1))
    frames = [board() for _ in edge]
    return collab.Setting(None, labels, frames, frames, said, said, said, said)  # type: ignore[arg-type]


def decision(*regions: tuple[int, str, str]) -> Decision:
    verdict = Verdict(label="open", score=1.0, margin=1.0, model="small@1")
    return Decision(
        sample_id="a",
        service="regions",
        label="open",
        score=1.0,
        decided="cloud",
        model="small@1",
        edge=verdict,
        regions=[
            DecidedRegion(box=tuple(map(float, TILES[i])), label=label, score=1.0, margin=1.0, decided=place)
            for i, label, place in regions
        ],
    )


def test_tiles_get_the_labels_of_the_decision_and_what_it_does_not_show_is_clean() -> None:
    edge = np.zeros((1, len(TILES)), int)
    edge[0, 3], edge[0, 5] = OPEN, SHORT
    said, from_cloud = collab.tile_labels([decision((3, "open", "edge"), (5, "clean", "cloud"))], setting(edge))
    assert np.flatnonzero(said[0]).tolist() == [3] and said[0, 3] == OPEN
    assert np.flatnonzero(from_cloud[0]).tolist() == [5]


def test_a_device_that_answers_otherwise_than_its_model_stops_the_benchmark() -> None:
    edge = np.zeros((1, len(TILES)), int)
    with pytest.raises(SystemExit, match="1 tiles"):
        collab.tile_labels([decision((3, "open", "edge"))], setting(edge))


REGIONS = {
    "case": "regions",
    "asked": 0.1,
    "bytes_a_board": 10.0,
    "share_of_cloud": 0.995,
    "escape_rate": 0.01,
    "overkill_rate": 0.02,
}


@pytest.mark.parametrize(
    ("change", "image_bytes", "met"),
    [({}, 20.0, (True, True)), ({}, 19.0, (True, False)), ({"share_of_cloud": 0.98}, 20.0, (False, True))],
)
def test_the_verdict_is_against_the_best_rule_and_the_oracle_is_none(
    change: dict[str, float], image_bytes: float, met: tuple[bool, bool]
) -> None:
    rules = [
        {"case": "a", "asked": 0.9, "bytes_a_board": 30.0},
        {"case": "b", "asked": 0.7, "bytes_a_board": image_bytes},
        {"case": collab_rules.ORACLE, "asked": 0.2, "bytes_a_board": 1.0},
    ]
    carried = [
        {"case": "a", "asked": 0.9, "bytes_a_board": 40.0, "share_of_cloud": 0.99},
        {"case": "b", "asked": 0.2, "bytes_a_board": 5.0, "share_of_cloud": 0.98},
    ]
    found = collab_rules.verdict([{**REGIONS, **change}], rules, rules, carried)
    assert (found["image_rule_carried_over"], found["bytes_ratio_carried_over"]) == ("a", 0.25)
    assert (found["image_rule"], found["image_share"], found["region_share"]) == ("b", 0.7, 0.1)
    assert (found["accuracy_met"], found["bytes_met"]) == met


def test_the_best_rule_is_the_cheapest_but_for_the_oracle_and_of_those_that_keep_the_accuracy_if_that_is_asked() -> (
    None
):
    rows = [
        {"case": "a", "bytes_a_board": 4.0, "share_of_cloud": 0.999},
        {"case": "b", "bytes_a_board": 3.0, "share_of_cloud": 0.98},
        {"case": collab_rules.ORACLE, "bytes_a_board": 1.0, "share_of_cloud": 0.999},
    ]
    assert collab_rules.best(rows)["case"] == "b"
    kept = collab_rules.best_keeping(rows)
    assert kept is not None and kept["case"] == "a"
    assert collab_rules.best_keeping(rows[1:2]) is None


def test_a_board_that_is_coded_anew_like_a_mosaic_costs_an_image_level_rule_what_that_takes() -> None:
    edge = np.zeros((2, len(TILES)), int)
    part = setting(edge)
    changed = edge.copy()
    frames = [board((290, 300, 320, 330, OPEN)), board()]
    home = int(np.flatnonzero(frames[0].truth == OPEN)[0])
    changed[0, home] = OPEN
    margin = np.ones(edge.shape)
    margin[0, home] = 0.1
    hard = collab_rules.Looked(edge, margin, margin, edge.max(axis=1), margin.min(axis=1))
    sure = collab_rules.Looked(changed, margin, margin, changed.max(axis=1), margin.min(axis=1))
    part = collab.Setting(None, part.labels, frames, frames, hard, sure, hard, sure)  # type: ignore[arg-type]
    cost = np.array([len(frame.data) + 500.0 for frame in frames])
    found = collab_sweep.same_coding(part, cost, 1.0, 100.0)
    anew = len(Mosaic(decode(frames[0].data, "grey"), whole((640, 640), [])).encode(webp=True))
    assert found["image_bytes_same_coding"] == (anew + 500) / 2 < cost[0] / 2, "one of two boards is asked"
    assert found["bytes_ratio_same_coding"] == 100.0 / ((anew + 500) / 2)
    assert found["image_bytes_carried_over_same_coding"] == found["image_bytes_same_coding"]


def test_a_setting_of_wanted_frames_keeps_what_belongs_together() -> None:
    whole = setting(np.zeros((2, len(regions(PIPELINE, 640, 640))), int))
    first = whole.test[0]
    part = whole.only(lambda one: one is first)
    assert part.test == part.calibration == [first]
    for looked in (part.edge, part.cloud, part.known_edge, part.known_cloud):
        assert looked.label.shape == looked.margin.shape == (1, whole.edge.label.shape[1])
        assert len(looked.frame_label) == len(looked.frame_margin) == 1
