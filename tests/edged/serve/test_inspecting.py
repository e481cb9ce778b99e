"""What a service makes of a picture, by its task: thresholds of its own, regions, and the rules' verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.collab.regions import LocalRegions
from edged.serve.inspecting import Vision, inspector, judged, local_decision, verdict
from edgekit.messages import DecidedRegion, Decision, Verdict
from edgekit.packages import DetectionSpec
from edgekit.regions.header import NOTHING
from edgekit.regions.select import Candidate
from edgekit.runtimes import ModelError
from edgekit.services import DecisionRules, Service, parse_service
from edgekit.vision.classification import Classified, Classifier
from edgekit.vision.detection.boxes import margins_of, ranked
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import ImageError, encode_png
from tests.support.detectors import bar_board, board, cell, make_detector, make_template
from tests.support.models import make_package, picture

MARKED = board((1, 2, "short", 0.9), (6, 5, "open", 0.3), width=256)
SHORT, OPEN = cell(1, 2, 256), cell(6, 5, 256)


def service(text: str = "", task: str = "detection") -> Service:
    return parse_service(f'name = "s"\nmodel = "m"\ntask = "{task}"\n{text}', "test")


def look(vision: Vision, wish: Service, data: bytes) -> LocalRegions:
    seen = inspector(wish, vision)(data)
    assert isinstance(seen, LocalRegions)
    return seen


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector.load(make_detector(tmp_path_factory.mktemp("detector") / "cells"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(make_package(tmp_path_factory.mktemp("classifier") / "b", labels=["dark", "dim", "bright"]))


def tiles_of(*levels: float) -> bytes:
    """Tiles of 16x16 pixels side by side, of these brightnesses."""
    image = np.zeros((16, 16 * len(levels), 3), np.uint8)
    for index, level in enumerate(levels):
        image[:, 16 * index : 16 * (index + 1)] = round(level * 255)
    return encode_png(image)


# --- detectors -------------------------------------------------------------------------------------------------------


def test_a_box_under_the_threshold_is_a_candidate_that_was_decided_as_nothing(detector: Detector) -> None:
    seen = look(detector, service(), MARKED)
    assert (seen.width, seen.height) == (256, 128) and seen.timings_ms.keys() == {"decode", "infer"}
    assert [(one.box, one.label) for one in seen.candidates] == [(SHORT, "short"), (OPEN, NOTHING)]
    assert [one.score for one in seen.candidates] == pytest.approx([0.9, 0.7], abs=0.01)
    assert [one.margin for one in seen.candidates] == pytest.approx([0.8, 0.4], abs=0.01)


def test_a_service_has_thresholds_of_its_own_for_all_and_for_each_label(detector: Detector) -> None:
    raised = look(detector, service("[detection]\nthreshold = 0.95"), MARKED)
    assert [one.label for one in raised.candidates] == [NOTHING, NOTHING]
    single = look(detector, service("[detection]\nthresholds = { open = 0.25 }"), MARKED)
    assert [one.label for one in single.candidates] == ["short", "open"]
    both = look(detector, service("[detection]\nthreshold = 0.95\nthresholds = { open = 0.25 }"), MARKED)
    assert [one.label for one in both.candidates] == [NOTHING, "open"]
    assert [one.margin for one in both.candidates] == pytest.approx([0.05 / 0.95, 0.05 / 0.75], abs=0.01)


def test_a_threshold_under_the_packages_floor_keeps_weaker_boxes(tmp_path: Path) -> None:
    strict = Detector.load(
        make_detector(tmp_path / "d", spec=DetectionSpec(head="yolov8", report=0.6, score_floor=0.4), samples=False)
    )
    assert len(look(strict, service(), MARKED).candidates) == 1
    seen = look(strict, service("[detection]\nthreshold = 0.2"), MARKED)
    assert [one.label for one in seen.candidates] == ["short", "open"]


@given(
    st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 2)), min_size=1, max_size=20),
    st.lists(st.floats(0.05, 0.99), min_size=3, max_size=3),
    st.floats(0, 1),
)
def test_margins_follow_from_those_of_a_lower_threshold_as_if_made_for_each_label(
    rows: list[tuple[float, float, int]], limits: list[float], share: float
) -> None:
    reports = np.array(limits)
    scores = np.array([score for score, _, _ in rows], np.float32)
    seconds = np.array([score * part for score, part, _ in rows], np.float32)
    labels = np.array([label for _, _, label in rows], np.int32)
    boxes = np.array([[10 * i, 0, 10 * i + 8, 8] for i in range(len(rows))], np.float32)
    lowest = 0.01 + share * (min(limits) - 0.01)
    found = ranked(boxes, scores, labels, margins_of(scores, seconds, lowest))
    candidates = judged(found, ["a", "b", "c"], reports, 1000, 100)
    wanted = {10.0 * i: margins_of(scores[[i]], seconds[[i]], limits[label])[0] for i, (_, _, label) in enumerate(rows)}
    assert len(candidates) == len(rows)
    for one in candidates:
        assert one.margin == pytest.approx(float(wanted[one.box[0]]), abs=1e-6)
    raw = [one.score if one.label != NOTHING else 1 - one.score for one in candidates]
    assert raw == sorted(raw, reverse=True)


def test_a_detector_looks_at_tiles_and_answers_in_pixels_of_the_whole_picture(detector: Detector) -> None:
    image = np.zeros((128, 256, 3), np.uint8)
    image[64:80, 160:176, 0] = 230
    wish = service('[pipeline.tiles]\nwidth = 128\nheight = 128\nworst = ["short"]')
    seen = look(detector, wish, encode_png(image))
    assert [(one.box, one.label) for one in seen.candidates] == [((160, 64, 176, 80), "short")]
    region = look(detector, service("[pipeline]\nroi = [0.5, 0.0, 1.0, 1.0]"), encode_png(image))
    assert [one.box for one in region.candidates] == [(160, 64, 176, 80)]


def test_a_golden_picture_is_a_detector_that_sees_the_whole_picture(tmp_path: Path) -> None:
    template = Detector.load(make_template(tmp_path / "t"))
    assert look(template, service(), bar_board()).candidates == []
    (found,) = look(template, service(), bar_board(gap=True)).candidates
    assert found.label == "open" and found.box == pytest.approx((60, 58, 72, 68), abs=2)
    with pytest.raises(ModelError, match="compares a picture with a golden one as a whole"):
        inspector(service('[pipeline.tiles]\nwidth = 64\nheight = 64\nworst = ["open"]'), template)


def test_what_is_no_picture_is_refused(detector: Detector) -> None:
    with pytest.raises(ImageError):
        inspector(service(), detector)(b"no picture")


# --- classifiers -----------------------------------------------------------------------------------------------------


def test_a_classifier_gives_one_answer_unless_its_service_sends_regions(classifier: Classifier) -> None:
    table = '[pipeline.tiles]\nwidth = 16\nheight = 16\nworst = ["dark", "dim"]'
    plain = inspector(service(task="classification"), classifier)(picture(0.9))
    worst = inspector(service(table, "classification"), classifier)(tiles_of(0.9, 0.1))
    assert isinstance(plain, Classified) and isinstance(worst, Classified)
    assert (plain.label, worst.label, worst.region) == ("bright", "dark", (16, 0, 32, 16))
    seen = look(classifier, service(f'{table}\n[regions]\nclean = "bright"', "classification"), tiles_of(0.9, 0.1, 0.6))
    assert (seen.width, seen.height) == (48, 16)
    assert [(one.box, one.label) for one in seen.candidates] == [
        ((0, 0, 16, 16), "bright"),
        ((16, 0, 32, 16), "dark"),
        ((32, 0, 48, 16), "dim"),
    ]
    assert seen.timings_ms["infer"] > 0


# --- decisions -------------------------------------------------------------------------------------------------------


def candidate(label: str, score: float, margin: float, left: int = 0) -> Candidate:
    return Candidate((left, 0, left + 8, 8), label, score, margin)


def test_the_edge_alone_decides_a_frame_by_its_regions() -> None:
    local = LocalRegions(
        64, 64, [candidate("short", 0.9, 0.8), candidate(NOTHING, 0.7, 0.4, 16), candidate("open", 0.6, 0.2, 32)]
    )
    wish = service('[decision]\nfail = ["open", "short"]\npass = ["nothing"]')
    decision = local_decision(wish, local, "m@1", "id")
    assert (decision.label, decision.score, decision.defects) == ("open", 0.6, 2)
    assert decision.edge == Verdict(label="open", score=0.6, margin=0.2, model="m@1")
    assert [(one.label, one.decided) for one in decision.regions] == [("short", "edge"), ("open", "edge")]
    silent = local_decision(wish, LocalRegions(64, 64, []), "m@1", "id")
    assert (silent.label, silent.defects, silent.regions, silent.certified) == ("nothing", 0, [], False)


RULES = DecisionRules(passes=["nothing", "scratch"], fail=["short"], min_margin=0.3)


def decided(*regions: tuple[str, float], margin: float = 0.9, cloud: float | None = None) -> Decision:
    edge = Verdict(label="nothing", score=0.9, margin=margin, model="m@1")
    other = None if cloud is None else Verdict(label="nothing", score=0.9, margin=cloud, model="l@1")
    found = [
        DecidedRegion(box=(0, 0, 8, 8), label=label, score=0.9, margin=sure, decided="edge") for label, sure in regions
    ]
    return Decision(
        sample_id="x", service="s", label="nothing", score=0.9, decided="edge" if cloud is None else "cloud",
        model="m@1", edge=edge, cloud=other, regions=found,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "word"),
    [
        (decided(), "pass"),
        (decided(margin=0.1), "review"),
        (decided(margin=0.1, cloud=0.9), "pass"),
        (decided(("scratch", 0.9)), "pass"),
        (decided(("scratch", 0.9), ("short", 0.9)), "fail"),
        (decided(("short", 0.1), ("scratch", 0.9)), "review"),
        (decided(("short", 0.1), ("short", 0.9)), "fail"),
        (decided(("hole", 0.9)), "review"),
        (decided((NOTHING, 0.1)), "pass"),
    ],
)
def test_a_frame_fails_if_a_region_does(decision: Decision, word: str) -> None:
    assert verdict(RULES, decision, NOTHING) == word


def test_a_clean_tile_that_the_cloud_answered_is_no_defect() -> None:
    rules = DecisionRules(passes=["clean"], fail=["short"])
    edge = Verdict(label="clean", score=0.9, margin=0.8, model="m@1")
    region = DecidedRegion(box=(0, 0, 8, 8), label="clean", score=0.9, margin=0.8, decided="cloud")
    decision = Decision(
        sample_id="x", service="s", label="clean", score=0.9, decided="cloud", model="m@1", edge=edge, cloud=edge,
        regions=[region],
    )  # fmt: skip
    assert verdict(rules, decision, "clean") == "pass"
