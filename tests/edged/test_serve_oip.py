"""Open Inference Protocol over real HTTP: the wire as the official client expects it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models import SIDE, expected_label, picture
from tests.support.plant import LABELS, Plant, definition


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    await plant.close()


def tensor(*brightness: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([np.full((3, SIDE, SIDE), value, np.float32) for value in brightness])


def binary_request(data: bytes, shape: list[int], datatype: str = "FP32", **rest: Any) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "input", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [entry], **rest}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


async def infer(plant: Plant, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
    """Status, JSON part, binary part."""
    async with plant.session.post(plant.url(path), data=body, headers=headers) as response:
        raw = await response.read()
        length = response.headers.get("Inference-Header-Content-Length")
        assert response.headers["Content-Type"] == ("application/octet-stream" if length else "application/json")
        cut = int(length) if length else len(raw)
        return response.status, json.loads(raw[:cut]), raw[cut:]


async def test_metadata(plant: Plant) -> None:
    plant.package(batch=True)
    await plant.start(definition("solder"))
    extensions = json.loads((await plant.get("/v2"))[1])["extensions"]
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(extensions)
    for path in ("/v2/models/brightness", "/v2/models/brightness/versions/1"):
        status, body = await plant.get(path)
        assert status == 200
        assert json.loads(body) == {
            "name": "brightness",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, SIDE, SIDE]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
        }
        assert await plant.get(f"{path}/ready") == (200, b"")
    status, body = await plant.get("/v2/models/brightness/versions/9")
    assert status == 404
    assert "'brightness' version 9 is not found; known models: brightness@1" in json.loads(body)["error"]


async def test_binary_json_raw_and_gzip_give_the_same_answer(plant: Plant) -> None:
    plant.package(batch=True)
    await plant.start(definition("solder"))
    path = "/v2/models/brightness/infer"
    data = tensor(0.1, 0.9)
    body, headers = binary_request(data.tobytes(), [2, 3, SIDE, SIDE], id="7", parameters={"binary_data_output": True})
    status, answer, tail = await infer(plant, path, body, headers)
    assert status == 200
    assert list(answer) == ["id", "model_name", "model_version", "outputs"]
    assert answer["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    ]
    logits = np.frombuffer(tail, "<f4").reshape(2, 3)
    assert [LABELS[index] for index in logits.argmax(1)] == ["dark", "bright"]

    text = json.dumps(
        {"inputs": [{"name": "input", "shape": [2, 3, SIDE, SIDE], "datatype": "FP32", "data": data.ravel().tolist()}]}
    )
    status, answer, tail = await infer(plant, path, text.encode(), {})
    assert (status, tail) == (200, b"")
    assert np.allclose(np.float32(answer["outputs"][0]["data"]).reshape(2, 3), logits, atol=1e-3)

    status, answer, tail = await infer(plant, path, data[:1].tobytes(), {"Inference-Header-Content-Length": "0"})
    assert status == 200
    assert np.allclose(np.frombuffer(tail, "<f4"), logits[0], atol=1e-3)

    body, headers = binary_request(data.tobytes(), [2, 3, SIDE, SIDE])
    status, answer, _ = await infer(plant, path, gzip.compress(body), headers | {"Content-Encoding": "gzip"})
    assert status == 200
    assert np.allclose(np.float32(answer["outputs"][0]["data"]).reshape(2, 3), logits, atol=1e-3)


async def test_pictures_as_bytes(plant: Plant) -> None:
    plant.package()
    await plant.start(definition("solder"))
    brightness = [0.1, 0.5, 0.9]
    packed = b""
    for number, value in enumerate(brightness):
        data = picture(value, kind=".jpg", seed=number)
        packed += struct.pack("<I", len(data)) + data
    body, headers = binary_request(packed, [3], "BYTES")
    status, answer, _ = await infer(plant, "/v2/models/brightness/infer", body, headers)
    assert status == 200
    logits = np.float32(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
    assert [LABELS[index] for index in logits.argmax(1)] == [expected_label(value, LABELS) for value in brightness]
    body, headers = binary_request(struct.pack("<I", 4) + b"junk", [1], "BYTES")
    status, answer, _ = await infer(plant, "/v2/models/brightness/infer", body, headers)
    assert status == 400
    assert "not a JPEG" in answer["error"]


async def test_refusals(plant: Plant) -> None:
    plant.package()
    worker = await plant.start(definition("solder"))
    path = "/v2/models/brightness/infer"
    good = tensor(0.5)
    poisoned = good.copy()
    poisoned[0, 1, 2, 3] = np.nan
    shape = [1, 3, SIDE, SIDE]
    for (body, headers), words in (
        (binary_request(poisoned.tobytes(), shape), "NaN or infinity"),
        (binary_request(good.tobytes(), [1, 3, SIDE, SIDE + 1]), "unexpected shape for input 'input'"),
        (binary_request(good.astype(np.uint8).tobytes(), shape, "UINT8"), "data-type is 'UINT8'"),
        (binary_request(good.tobytes()[:-4], shape), "Expected 3072, got 3068"),
        (binary_request(tensor(0.1, 0.2).tobytes(), [2, 3, SIDE, SIDE]), "Expected [1,3,16,16], got [2,3,16,16]"),
        ((b"{", {}), "failed to parse"),
        ((b"", {}), "failed to parse"),
    ):
        status, answer, _ = await infer(plant, path, body, headers)
        assert status == 400, answer
        assert words in answer["error"]
    body, headers = binary_request(good.tobytes(), shape)
    status, answer, _ = await infer(plant, "/v2/models/nope/infer", body, headers)
    assert status == 404
    assert "known models: brightness@1" in answer["error"]
    assert (await infer(plant, "/v2/models/brightness/versions/2/infer", body, headers))[0] == 404
    assert (await infer(plant, path, body, headers))[0] == 200
    await worker.until(lambda: (r := worker.service("solder")) and r.refused == 7)
