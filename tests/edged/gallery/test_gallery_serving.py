"""The worker as a process with an embedder and with an anomaly detector: what comes back over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.vision.images import decode
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.parts import CELL, SIDE, dark, make_anomaly, make_embedder, quarters
from tests.support.plant import Plant, definition

RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1)
ANNA, BERT, NOBODY = (RED, BLUE, RED, BLUE), (BLUE, RED, GREEN, GREEN), (GREEN, GREEN, RED, BLUE)
TOKEN = {"Edged-Management": "secret"}


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.packages["quarters"] = make_embedder(tmp_path / "models" / "quarters").root
    plant.packages["dark"] = make_anomaly(tmp_path / "models" / "dark").root
    yield plant
    await plant.close()


def door(**rest: Any) -> str:
    return definition("door", "quarters", task="embedding", **rest)


async def enrol(plant: Plant, identity: str, picture: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    status, body, _ = await plant.post(
        f"/v1/services/door/gallery?identity={identity}&by=me", picture, **(headers or TOKEN)
    )
    return status, body


async def test_an_identity_service_knows_whom_it_was_shown(plant: Plant) -> None:
    out = plant.root / "out.jsonl"
    worker = await plant.start(
        door(decision={"pass": ["known"], "fail": ["unknown"]}, gallery={"threshold": 0.9}, outputs=[str(out)]),
        management_token="secret",
    )
    inspect = "/v1/services/door/inspect"
    _, decision, _ = await plant.post(inspect, quarters(*ANNA, noise=1))
    assert (decision["label"], decision["verdict"]) == ("unknown", "fail")
    assert await enrol(plant, "Anna", quarters(*ANNA, noise=2)) == (
        200,
        {"identity": "Anna", "pictures": 1, "new": True},
    )
    assert (await enrol(plant, "Bert", quarters(*BERT, noise=3)))[0] == 200
    _, decision, _ = await plant.post(inspect, quarters(*ANNA, noise=4))
    assert (decision["label"], decision["verdict"], decision["decided"]) == ("Anna", "pass", "edge")
    assert decision["score"] > 0.95 and 0 < decision["edge"]["margin"] <= 1
    _, decision, _ = await plant.post(inspect, quarters(*NOBODY, noise=5))
    assert (decision["label"], decision["verdict"]) == ("unknown", "fail")
    assert '"label":"Anna"' in out.read_text(), "decisions name whom they show"
    report = await worker.until(lambda: (r := worker.service("door")) and r.inspected == 3 and r)
    assert report.labels == {"unknown": 2, "known": 1}, "reports and metrics name nobody"
    assert "Anna" not in report.preview and "2 identities by 2 pictures" in report.gate


async def test_enrolling_needs_the_token_and_a_picture_that_fits(plant: Plant) -> None:
    await plant.start(
        door(gallery={"threshold": 0.9}),
        definition("parts", "dark", task="anomaly"),
        management_token="secret",
    )
    picture = quarters(*ANNA, noise=1)
    assert (await enrol(plant, "Anna", picture, **{"Edged-Management": "wrong"}))[0] == 403
    assert (await enrol(plant, "Anna", b""))[0] == 400
    assert (await enrol(plant, "Anna", b"nothing that is a picture"))[0] == 400
    assert (await enrol(plant, "known", picture))[0] == 400
    assert (await enrol(plant, "Anna", picture))[0] == 200
    status, body = await enrol(plant, "Bert", quarters(*ANNA, noise=9))
    assert status == 409 and "looks like Anna" in body["error"]
    status, body, _ = await plant.post("/v1/services/parts/gallery?identity=Anna", picture, **TOKEN)
    assert status == 409 and "parts has no gallery" in body["error"]
    status, body, _ = await plant.post("/v1/services/gate/gallery?identity=Anna", picture, **TOKEN)
    assert status == 404


async def test_a_successor_knows_whom_the_worker_before_enrolled(plant: Plant) -> None:
    await plant.start(door(gallery={"threshold": 0.9}), management_token="secret")
    assert (await enrol(plant, "Anna", quarters(*ANNA, noise=1)))[0] == 200
    await plant.workers[0].end()
    await plant.start(door(gallery={"threshold": 0.9}), management_token="secret")
    _, decision, _ = await plant.post("/v1/services/door/inspect", quarters(*ANNA, noise=2))
    assert decision["label"] == "Anna"


async def test_rules_may_name_single_people(plant: Plant) -> None:
    await plant.start(
        door(decision={"pass": ["Anna"], "fail": ["unknown", "Bert"]}, gallery={"threshold": 0.9}),
        management_token="secret",
    )
    for name, colours in (("Anna", ANNA), ("Bert", BERT), ("Cora", NOBODY)):
        assert (await enrol(plant, name, quarters(*colours, noise=1)))[0] == 200
    verdicts = {}
    for name, colours in (("Anna", ANNA), ("Bert", BERT), ("Cora", NOBODY), ("?", (GREEN, BLUE, GREEN, BLUE))):
        _, decision, _ = await plant.post("/v1/services/door/inspect", quarters(*colours, noise=2))
        verdicts[name] = (decision["label"], decision["verdict"])
    assert verdicts == {
        "Anna": ("Anna", "pass"),
        "Bert": ("Bert", "fail"),
        "Cora": ("Cora", "review"),
        "?": ("unknown", "fail"),
    }


async def test_an_anomaly_service_says_where_and_the_preview_turns_red_there(plant: Plant) -> None:
    worker = await plant.start(
        definition("parts", "dark", task="anomaly", decision={"pass": ["normal"], "fail": ["anomaly"]})
    )
    _, decision, _ = await plant.post("/v1/services/parts/inspect", dark((2, 3, 0.9), side=2 * SIDE))
    assert (decision["label"], decision["verdict"], decision["defects"]) == ("anomaly", "fail", 1)
    step = 2 * CELL
    assert decision["regions"][0]["box"] == [2 * step, 3 * step, 3 * step, 4 * step]
    status, picture = await plant.get("/v1/services/parts/preview.jpg")
    assert status == 200
    shown = decode(picture).astype(int)
    red = (shown[:, :, 0] - shown[:, :, 1])[6:-40, 6:-6]
    factor = red.shape[1] / (2 * SIDE)
    middle = red[round(3.5 * step * factor), round(2.5 * step * factor)]
    assert middle > 60 and abs(np.median(red)) < 10
    _, decision, _ = await plant.post("/v1/services/parts/inspect", dark((2, 3, 0.1)))
    assert (decision["label"], decision["verdict"]) == ("normal", "pass")
    assert "regions" not in decision and "defects" not in decision
    report = await worker.until(lambda: (r := worker.service("parts")) and r.inspected == 2 and r)
    assert report.labels == {"anomaly": 1, "normal": 1} and report.verdicts == {"fail": 1, "pass": 1}


async def test_a_doubtful_part_is_for_review_by_its_margin(plant: Plant) -> None:
    rules = {"pass": ["normal"], "fail": ["anomaly"], "min_margin": 0.3}
    await plant.start(definition("parts", "dark", task="anomaly", decision=rules))
    verdicts = []
    for level in (0.1, 0.48, 0.52, 0.95):
        _, decision, _ = await plant.post("/v1/services/parts/inspect", dark((4, 4, level)))
        verdicts.append(decision["verdict"])
    assert verdicts == ["pass", "review", "review", "fail"]


async def test_a_hard_part_is_decided_by_the_cloud_and_its_places_go_with_the_answer(
    plant: Plant, tmp_path: Path
) -> None:
    cloud = FaultyCloud(tmp_path / "cloud")
    await cloud.start()
    try:
        await plant.start(
            definition(
                "parts",
                "dark",
                task="anomaly",
                deadline_ms=5000,
                decision={"pass": ["normal"], "fail": ["anomaly"]},
                hard_samples={"mode": "risk", "answer_model": "large"},
            ),
            link=make_link(plant.state, cloud.url, cloud.authority),
        )
        cloud.label = "normal"
        _, decision, _ = await plant.post("/v1/services/parts/inspect", dark((2, 3, 0.55)))
        assert (decision["edge"]["label"], decision["label"], decision["decided"]) == ("anomaly", "normal", "cloud")
        assert decision["verdict"] == "pass" and "regions" not in decision
        cloud.label = "anomaly"
        _, decision, _ = await plant.post("/v1/services/parts/inspect", dark((2, 3, 0.6)))
        assert (decision["label"], decision["decided"], decision["verdict"]) == ("anomaly", "cloud", "fail")
        assert len(decision["regions"]) == 1
        assert cloud.received[0].edge.margin < 0.5
    finally:
        await cloud.stop()


async def test_names_stay_out_of_the_samples_that_are_kept_for_learning(plant: Plant) -> None:
    worker = await plant.start(door(gallery={"threshold": 0.9}, samples={"keep": "all"}), management_token="secret")
    assert (await enrol(plant, "Annabella", quarters(*ANNA, noise=1)))[0] == 200
    _, decision, _ = await plant.post("/v1/services/door/inspect", quarters(*ANNA, noise=2))
    assert decision["label"] == "Annabella"

    def stored() -> bytes:
        return b"".join(one.read_bytes() for one in (plant.state / "samples").rglob("*") if one.is_file())

    await worker.until(lambda: b"known" in stored())
    assert b"Annabella" not in stored()


async def test_both_models_answer_the_open_inference_protocol_with_their_tensors(plant: Plant) -> None:
    await plant.start(door(), definition("parts", "dark", task="anomaly"))
    for model, output, shape in (("quarters", "embedding", [1, 12]), ("dark", "map", [1, 1, 8, 8])):
        status, body, _ = await plant.post(
            f"/v2/models/{model}/infer",
            json.dumps(
                {
                    "inputs": [
                        {"name": "input", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": [0.25] * (3 * 64 * 64)}
                    ]
                }
            ),
        )
        assert status == 200, body
        assert (body["outputs"][0]["name"], body["outputs"][0]["shape"]) == (output, shape)


async def test_a_service_of_another_task_than_its_model_fails_with_the_reason(plant: Plant) -> None:
    worker = await plant.start(definition("wrong", "dark"), definition("odd", "quarters", task="anomaly"))
    for name, words in (
        ("wrong", "dark@1 is a model for anomaly, but the service wants classification"),
        ("odd", "quarters@1 is a model for embedding, but the service wants anomaly"),
    ):
        report = worker.service(name)
        assert report is not None and report.state == "failed" and words in report.detail, report
