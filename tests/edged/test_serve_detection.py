"""The worker as a process with detectors, golden pictures and tiles that are regions: what comes back over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.messages import HardSample
from edgekit.regions.header import Found, MosaicAnswer, RegionAnswer
from edgekit.vision.images import decode, encode_png
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.detectors import LABELS, SIDE, bar_board, board, cell, make_detector, make_template
from tests.support.plant import Plant, definition

RULES = {"pass": ["nothing"], "fail": ["short"], "min_margin": 0.1}
INSPECT = "/v1/services/shorts/inspect"


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.packages["cells"] = make_detector(tmp_path / "models" / "cells").root
    yield plant
    await plant.close()


def detection(name: str = "shorts", model: str = "cells", **rest: Any) -> str:
    return definition(name, model, task="detection", **rest)


async def test_a_detector_decides_with_boxes_and_the_page_shows_them(plant: Plant) -> None:
    out = plant.root / "out.jsonl"
    worker = await plant.start(detection(decision=RULES, outputs=[str(out)]))
    marked = board((1, 2, "short", 0.9), (6, 5, "open", 0.8), (3, 3, "open", 0.3))
    status, decision, _ = await plant.post(INSPECT, marked)
    assert status == 200
    assert (decision["label"], decision["decided"], decision["verdict"], decision["defects"]) == (
        "short", "edge", "fail", 2,
    )  # fmt: skip
    assert [(one["label"], tuple(one["box"])) for one in decision["regions"]] == [
        ("short", cell(1, 2)),
        ("open", cell(6, 5)),
    ]
    assert "region" not in decision and {"queue", "decode", "infer", "total"} <= decision["timings_ms"].keys()
    status, picture = await plant.get("/v1/services/shorts/preview.jpg")
    assert status == 200
    shown = decode(picture).astype(int)  # 128 pixels are drawn as 256, in a frame of 6
    red, blue = shown[:, :, 0] - shown[:, :, 1], shown[:, :, 2] - shown[:, :, 1]
    left, top, right, _ = (round(6 + 2 * edge) for edge in cell(1, 2))
    assert red[top - 4 : top, left:right].max() > 60 and blue[top - 4 : top, left:right].max() < 40
    for label, verdict, found in (("nothing", "pass", board()), ("nothing", "review", board((3, 3, "open", 0.48)))):
        _, decision, _ = await plant.post(INSPECT, found)
        assert (decision["label"], decision["verdict"]) == (label, verdict), decision
        assert "defects" not in decision and "regions" not in decision
    report = await worker.until(lambda: (r := worker.service("shorts")) and r.inspected == 3 and r)
    assert report.labels == {"short": 1, "nothing": 2}
    assert report.verdicts == {"fail": 1, "pass": 1, "review": 1}
    assert report.regions == {"candidates": 4, "defects": 2, "cloud": 0}
    assert json.loads(out.read_text().splitlines()[0])["defects"] == 2


async def test_a_service_says_itself_from_which_score_a_box_counts(plant: Plant) -> None:
    await plant.start(
        detection(detection={"threshold": 0.95}),
        detection("keen", **{"detection.thresholds": {"open": 0.25}}),
    )
    marked = board((1, 2, "short", 0.9), (6, 5, "open", 0.3))
    assert (await plant.post(INSPECT, marked))[1]["label"] == "nothing"
    _, decision, _ = await plant.post("/v1/services/keen/inspect", marked)
    assert [one["label"] for one in decision["regions"]] == ["short", "open"]


async def test_a_model_of_another_task_or_a_label_it_lacks_fails_the_service_with_the_reason(plant: Plant) -> None:
    plant.package("brightness")
    plant.packages["golden"] = make_template(plant.root / "models" / "golden").root
    tiles = {"width": 64, "height": 64, "worst": ["open"]}
    worker = await plant.start(
        definition("wrong", "cells"),
        detection("wanted", "brightness"),
        detection("crack", **{"detection.thresholds": {"crack": 0.3}}),
        detection("tiled", "golden", **{"pipeline.tiles": tiles}),
    )
    for name, words in (
        ("wrong", "cells@1 is a model for detection, but the service wants classification"),
        ("wanted", "brightness@1 is a model for classification, but the service wants detection"),
        ("crack", '"detection.thresholds" names "crack", which the model does not know'),
        ("tiled", "golden@1 compares a picture with a golden one as a whole"),
    ):
        report = worker.service(name)
        assert report is not None and report.state == "failed" and words in report.detail, report


async def test_tiles_are_regions_where_the_service_says_so(plant: Plant) -> None:
    plant.package("brightness")
    worker = await plant.start(
        definition(
            "tiles",
            decision={"pass": ["bright"], "fail": ["dark"]},
            regions={"clean": "bright"},
            **{"pipeline.tiles": {"width": 32, "height": 32, "worst": ["dark", "dim"]}},
        )
    )
    image = np.full((32, 96, 3), 230, np.uint8)
    _, decision, _ = await plant.post("/v1/services/tiles/inspect", encode_png(image))
    assert (decision["label"], decision["verdict"], decision.get("defects", 0)) == ("bright", "pass", 0)
    image[:, 32:64], image[:, 64:] = 20, 128
    _, decision, _ = await plant.post("/v1/services/tiles/inspect", encode_png(image))
    assert (decision["label"], decision["verdict"], decision["defects"]) == ("dark", "fail", 2)
    assert [(one["label"], one["box"]) for one in decision["regions"]] == [
        ("dark", [32, 0, 64, 32]),
        ("dim", [64, 0, 96, 32]),
    ]
    assert (await plant.get("/v1/services/tiles/preview.jpg"))[0] == 200
    report = worker.service("tiles")
    assert report is not None and report.state == "ready"


async def test_a_golden_picture_is_served_like_any_model_but_has_no_tensors(plant: Plant) -> None:
    plant.packages["golden"] = make_template(plant.root / "models" / "golden").root
    plant.packages["golden@1"] = plant.packages["golden"]
    worker = await plant.start(detection("bars", "golden"), models=["golden@1"])
    _, decision, _ = await plant.post("/v1/services/bars/inspect", bar_board(gap=True))
    assert (decision["label"], decision["defects"]) == ("open", 1)
    assert (await plant.post("/v1/services/bars/inspect", bar_board()))[1]["label"] == "nothing"
    assert (await plant.get("/v2/models/golden"))[0] == 404
    status, index, _ = await plant.post("/v2/repository/index", b"{}")
    assert status == 200
    (entry,) = [one for one in index if one["name"] == "golden"]
    assert entry["state"] == "UNAVAILABLE" and "compares pictures with a golden one" in entry["reason"]
    assert worker.ready is not None
    (alone,) = worker.ready.models
    assert alone.state == "failed"


async def test_its_tensors_are_those_of_the_model_over_the_open_inference_protocol(plant: Plant) -> None:
    plant.packages["cells@1"] = plant.packages["cells"]
    plant.packages["other@1"] = make_detector(plant.root / "models" / "other", "other", gain=0.5, samples=False).root
    worker = await plant.start(detection(), models=["cells@1", "other@1"])
    assert worker.ready is not None
    assert [(one.model, one.state) for one in worker.ready.models] == [("cells@1", "ready"), ("other@1", "ready")]
    _, body = await plant.get("/v2/models/cells")
    about = json.loads(body)
    assert about["outputs"] == [{"name": "output0", "datatype": "FP32", "shape": [1, 6, 64]}]
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[16:24, 8:16, LABELS.index("short")] = 204
    for name, score in (("cells", 0.8), ("other", 0.4)):
        tensor = {"name": "input", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()}
        status, answer, _ = await plant.post(f"/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())
        assert status == 200, answer
        rows = np.array(answer["outputs"][0]["data"]).reshape(6, 64)
        assert rows[4, 2 * 8 + 1] == pytest.approx(score) and rows[4].sum() == pytest.approx(score)
        assert rows[:4, 2 * 8 + 1].tolist() == [12, 20, 8, 8]
        status, answer, _ = await plant.post(f"/v1/models/{name}/image", board((1, 2, "short", 0.8)))
        assert status == 200 and answer["outputs"][0]["name"] == "output0"


async def test_a_new_detector_is_compared_with_the_boxes_that_the_one_before_pins(plant: Plant) -> None:
    newer = make_detector(plant.root / "models" / "newer", "cells", "2", gain=0.5, samples=False).root
    plant.packages |= {"cells@1": plant.packages["cells"], "cells@2": newer}
    worker = await plant.start(detection(model="cells@2"), compare={"shorts": "cells@1"})
    assert worker.ready is not None
    (found,) = worker.ready.comparisons
    assert (found.model, found.previous, found.samples, found.agreed) == ("cells@2", "cells@1", 3, 1)
    assert "and has it no more" in found.differing[0]


async def test_the_doubtful_boxes_alone_are_sent_and_the_verdict_follows_what_the_cloud_says(
    plant: Plant, tmp_path: Path
) -> None:
    cloud = FaultyCloud(tmp_path / "cloud")
    await cloud.start()

    def confirm_open(header: HardSample) -> MosaicAnswer:
        """The large detector sees the weak `open`, and not the `short`."""
        assert header.mosaic is not None
        return MosaicAnswer(
            task="detection",
            found=[
                Found(cell=number, box=region.box, label="open", score=0.97, margin=0.9)
                for number, one in enumerate(header.mosaic.cells)
                for region in one.regions
                if region.box == cell(6, 5)
            ],
        )

    cloud.regions = confirm_open
    try:
        worker = await plant.start(
            detection(
                decision={"pass": ["nothing"], "fail": ["open"]},
                deadline_ms=5000,
                hard_samples={"mode": "risk", "answer_model": "large"},
                regions={"silent": 0.0},
            ),
            link=make_link(plant.state, cloud.url, cloud.authority),
        )
        _, decision, _ = await plant.post(INSPECT, board((1, 2, "short", 0.6), (6, 5, "open", 0.45)))
        assert (decision["edge"]["label"], decision["label"], decision["decided"]) == ("short", "open", "cloud")
        assert (decision["verdict"], decision["defects"], decision["sent"]) == ("fail", 1, "calibrating")
        assert {(one["label"], tuple(one["box"]), one["decided"]) for one in decision["regions"]} == {
            ("open", cell(6, 5), "cloud"),
            ("", cell(1, 2), "cloud"),
        }
        (header,) = cloud.received
        assert header.mosaic is not None and header.mosaic.frame == (128, 128) and header.pipeline is None
        assert decode(cloud.pictures[header.sample_id]).shape[0] <= 128, "parts, not the whole picture"
        assert (await plant.get("/v1/services/shorts/preview.jpg"))[0] == 200
        await cloud.stop()
        _, decision, _ = await plant.post(INSPECT, board((1, 2, "short", 0.9)))
        assert (decision["decided"], decision["label"], decision["verdict"]) == ("edge-degraded", "short", "review")
        assert decision["spooled"], decision
        _, decision, _ = await plant.post(INSPECT, board())
        assert (decision["decided"], decision["label"]) == ("edge", "nothing"), "a silent frame has nothing to send"
        report = await worker.until(lambda: (r := worker.service("shorts")) and r.inspected == 3 and r)
        assert "Each sample is a region." in report.gate
    finally:
        await cloud.stop()


async def test_a_tile_that_the_cloud_calls_clean_is_no_defect_any_more(plant: Plant, tmp_path: Path) -> None:
    plant.package("brightness")
    cloud = FaultyCloud(tmp_path / "cloud")
    await cloud.start()

    def all_bright(header: HardSample) -> MosaicAnswer:
        assert header.mosaic is not None
        asked = header.mosaic.regions()
        answers = [RegionAnswer(index=one.index, label="bright", score=0.9, margin=0.8) for one in asked]
        return MosaicAnswer(task="classification", regions=answers)

    cloud.regions = all_bright
    try:
        await plant.start(
            definition(
                "tiles",
                deadline_ms=5000,
                decision={"pass": ["bright"], "fail": ["dark", "dim"]},
                hard_samples={"mode": "risk", "answer_model": "large"},
                regions={"clean": "bright"},
                **{"pipeline.tiles": {"width": 32, "height": 32, "worst": ["dark", "dim"]}},
            ),
            link=make_link(plant.state, cloud.url, cloud.authority),
        )
        image = np.full((32, 96, 3), 230, np.uint8)
        image[:, 32:64] = 128
        _, decision, _ = await plant.post("/v1/services/tiles/inspect", encode_png(image))
        assert (decision["edge"]["label"], decision["label"], decision["decided"]) == ("dim", "bright", "cloud")
        assert (decision["verdict"], decision.get("defects", 0)) == ("pass", 0)
        assert {one["label"] for one in decision["regions"]} == {"bright"} and len(decision["regions"]) == 3
        assert (await plant.get("/v1/services/tiles/preview.jpg"))[0] == 200
    finally:
        await cloud.stop()
