"""The worker as a process with a pipeline and decision rules: what comes back, what is counted, what cloudd hears."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.messages import Drain
from edgekit.services import Tiles
from edgekit.vision.images import encode_png
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.models import picture
from tests.support.plant import Plant, definition

RULES = {"pass": ["bright"], "fail": ["dark"], "min_margin": 0.2}
INSPECT = "/v1/services/solder/inspect"


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.package()
    yield plant
    await plant.close()


def halves(left: float, right: float) -> bytes:
    """A picture of 64x32 pixels whose halves have these brightnesses."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = round(left * 255), round(right * 255)
    return encode_png(image)


async def test_verdicts_come_with_the_answer_and_are_counted_and_written(plant: Plant) -> None:
    out = plant.root / "out.jsonl"
    worker = await plant.start(definition("solder", decision=RULES, outputs=[str(out)]))
    expected = {0.9: "pass", 0.1: "fail", 0.5: "review", 2 / 3: "review"}  # dim is in no list; 2/3 is doubtful
    for brightness, verdict in expected.items():
        status, decision, _ = await plant.post(INSPECT, picture(brightness))
        assert (status, decision["verdict"]) == (200, verdict), decision
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected == 4 and r)
    assert report.verdicts == {"pass": 1, "fail": 1, "review": 2}
    assert report.recent_p50_ms is not None and report.recent_per_s > 0
    assert {stage: sum(counts) for stage, counts in report.stage_counts.items()} == {
        "queue": 4, "decode": 4, "infer": 4,
    }  # fmt: skip
    assert [json.loads(line)["verdict"] for line in out.read_text().splitlines()] == list(expected.values())


async def test_a_service_without_rules_gives_no_verdict(plant: Plant) -> None:
    await plant.start(definition("solder"))
    _, decision, _ = await plant.post(INSPECT, picture(0.9))
    assert "verdict" not in decision and "region" not in decision


async def test_rules_for_labels_that_the_model_does_not_know_fail_the_service(plant: Plant) -> None:
    worker = await plant.start(
        definition("solder", decision={"fail": ["crack"]}),
        definition("tiled", **{"pipeline.tiles": {"width": 8, "height": 8, "worst": ["crack"]}}),
    )
    for name, key in (("solder", "decision.fail"), ("tiled", "pipeline.tiles.worst")):
        report = worker.service(name)
        assert report is not None and report.state == "failed"
        assert report.detail == (
            f'"{key}" names "crack", which the model does not know; its labels are dark, dim, bright'
        )


async def test_a_region_of_interest_decides_alone(plant: Plant) -> None:
    await plant.start(
        definition("solder", pipeline={"roi": [0.5, 0.0, 1.0, 1.0]}),
        definition("pixels", pipeline={"roi": [32, 0, 64, 32], "roi_unit": "pixel"}),
    )
    for name in ("solder", "pixels"):
        _, decision, _ = await plant.post(f"/v1/services/{name}/inspect", halves(0.1, 0.9))
        assert (decision["label"], decision["region"]) == ("bright", [32, 0, 64, 32])
    status, problem, _ = await plant.post("/v1/services/pixels/inspect", picture(0.9, side=40))
    assert status == 400
    assert problem["error"] == ("the region of interest reaches to 64x32, outside of this picture of 40x40 pixels")


async def test_the_worst_tile_decides_and_is_named(plant: Plant) -> None:
    tiles = {"width": 32, "height": 32, "worst": ["dark", "dim"]}
    await plant.start(
        definition("solder", decision=RULES, **{"pipeline.tiles": tiles}),
        definition("mean", **{"pipeline.tiles": {"width": 32, "height": 32, "aggregate": "mean"}}),
    )
    _, decision, _ = await plant.post(INSPECT, halves(0.9, 0.1))
    assert (decision["label"], decision["region"], decision["verdict"]) == ("dark", [32, 0, 64, 32], "fail")
    _, decision, _ = await plant.post(INSPECT, halves(0.9, 0.85))
    assert (decision["label"], decision["verdict"]) == ("bright", "pass")
    _, decision, _ = await plant.post("/v1/services/mean/inspect", halves(0.9, 0.1))
    assert decision["edge"]["margin"] < 0.01, "one half says bright, the other one dark: nothing is sure"


async def test_the_verdict_follows_the_label_of_the_cloud_which_sees_the_same_part(
    plant: Plant, tmp_path: Path
) -> None:
    cloud = FaultyCloud(tmp_path / "cloud")
    await cloud.start()
    try:
        link = make_link(plant.state, cloud.url, cloud.authority)
        await plant.start(
            definition(
                "solder",
                decision={"pass": ["bright"], "fail": ["dark"]},
                deadline_ms=5000,
                hard_samples={"mode": "risk", "answer_model": "large"},
                **{"pipeline.tiles": {"width": 32, "height": 32, "worst": ["dark"]}},
            ),
            link=link,
        )
        for label, verdict in (("dark", "fail"), ("bright", "pass"), ("what only the large model knows", "review")):
            cloud.label = label
            _, decision, _ = await plant.post(INSPECT, halves(0.9, 0.8))
            assert (decision["edge"]["label"], decision["decided"]) == ("bright", "cloud")
            assert (decision["label"], decision["verdict"]) == (label, verdict)
        await cloud.stop()
        _, decision, _ = await plant.post(INSPECT, halves(0.9, 0.8))
        assert (decision["decided"], decision["verdict"]) == ("edge-degraded", "pass")
    finally:
        await cloud.stop()
    pipeline = cloud.received[0].pipeline
    assert pipeline is not None and pipeline.tiles == Tiles(width=32, height=32, worst=["dark"])


async def test_another_pipeline_is_another_model_to_the_gate(plant: Plant, tmp_path: Path) -> None:
    """What was learned while the model looked at something else proves nothing."""
    cloud = FaultyCloud(tmp_path / "cloud")
    cloud.label = "bright"
    await cloud.start()
    hard = {"mode": "risk", "answer_model": "large", "risk": 0.3, "calibration": 20}
    link = make_link(plant.state, cloud.url, cloud.authority)
    try:
        for roi, first in (([0.0, 0.0, 1.0, 1.0], True), ([0.0, 0.0, 1.0, 1.0], False), ([0.0, 0.0, 0.5, 1.0], True)):
            worker = await plant.start(
                definition("solder", deadline_ms=5000, hard_samples=hard, pipeline={"roi": roi}), link=link
            )
            _, decision, _ = await plant.post(INSPECT, picture(0.9, seed=1))
            assert (decision.get("sent") == "calibrating") is first, (roi, decision)
            for number in range(40 if first else 0):
                await plant.post(INSPECT, picture(0.9, seed=number))
            worker.send(Drain())
            assert await worker.exit_status() == 0
    finally:
        await cloud.stop()
