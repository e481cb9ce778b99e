"""NVIDIA's own clients, unmodified, against a real worker and a real daemon."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edged.serve.oip.inference import request_class
from edgekit.packages import InputSpec, Manifest, OutputSpec, Variant, seal_package
from tests.support.edged import Edged, wait_for
from tests.support.models import SIDE, expected_label, picture
from tests.support.plant import LABELS, Plant, definition
from tests.support.probes import MODEL, make_tiny64

triton = pytest.importorskip("tritonclient.http")
triton_aio = pytest.importorskip("tritonclient.http.aio")
InferenceServerException = triton.InferenceServerException

SHAPE = [1, 3, SIDE, SIDE]


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    await plant.close()


def tensor(brightness: float, binary: bool = True, batch: int = 1) -> Any:
    given = triton.InferInput("input", [batch, *SHAPE[1:]], "FP32")
    given.set_data_from_numpy(np.full((batch, *SHAPE[1:]), brightness, np.float32), binary_data=binary)
    return given


def pictures(*brightness: float) -> Any:
    given = triton.InferInput("input", [len(brightness)], "BYTES")
    files = [picture(value, kind=".jpg") for value in brightness]
    given.set_data_from_numpy(np.array(files, dtype=object))
    return given


def label(result: Any) -> list[str]:
    return [LABELS[index] for index in result.as_numpy("logits").argmax(1)]


def use_http(port: int) -> None:
    """What a program written for Triton does."""
    with triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=2) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("brightness") and client.is_model_ready("brightness", "1")
        assert not client.is_model_ready("nope")
        assert "statistics" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("brightness")["inputs"][0]["shape"] == [-1, 3, SIDE, SIDE]
        config = client.get_model_config("brightness")
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        assert config["input"][0]["dims"] == SHAPE[1:]

        assert label(client.infer("brightness", [tensor(0.9)])) == ["bright"]
        assert label(client.infer("brightness", [tensor(0.1, binary=False)])) == ["dark"]
        assert label(client.infer("brightness", [tensor(0.5, batch=3)])) == ["dim"] * 3
        json_output = [triton.InferRequestedOutput("logits", binary_data=False)]
        assert label(client.infer("brightness", [tensor(0.9)], outputs=json_output)) == ["bright"]
        values = [0.1, 0.5, 0.9]
        assert label(client.infer("brightness", [pictures(*values)])) == [expected_label(v, LABELS) for v in values]
        pixels = triton.InferInput("input", [40, 30, 3], "UINT8")
        pixels.set_data_from_numpy(np.full((40, 30, 3), 230, np.uint8))
        assert label(client.infer("brightness", [pixels])) == ["bright"]

        ranked = [triton.InferRequestedOutput("logits", class_count=2)]
        texts = client.infer("brightness", [tensor(0.9)], outputs=ranked).as_numpy("logits")
        assert [text.decode().split(":")[2] for text in texts[0]] == ["bright", "dim"]

        for algorithm in ("gzip", "deflate"):
            result = client.infer(
                "brightness",
                [tensor(0.9)],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
                request_id="board 7",
                priority=2,
                timeout=5_000_000,
                parameters={"station": 3, "timings": True},
            )
            assert label(result) == ["bright"]
            reply = result.get_response()
            assert reply["id"] == "board 7"
            assert set(reply["parameters"]) == {"queue_ms", "decode_ms", "infer_ms", "encode_ms"}
        pending = [client.async_infer("brightness", [tensor(0.9)]) for _ in range(4)]
        assert [label(each.get_result()) for each in pending] == [["bright"]] * 4

        for call, words in (
            (lambda: client.infer("nope", [tensor(0.5)]), "unknown model: 'nope'"),
            (lambda: client.infer("brightness", [tensor(0.5)], model_version="7"), "version 7 is not found"),
            (lambda: client.load_model("brightness"), "expecting header 'Edged-Management'"),
            (lambda: client.unload_model("brightness"), "expecting header 'Edged-Management'"),
            (lambda: client.register_system_shared_memory("r", "/k", 64), "not supported"),
            (lambda: client.update_log_settings({"log_verbose_level": 1}), "not supported"),
        ):
            with pytest.raises(InferenceServerException, match=words):
                call()
        assert client.get_system_shared_memory_status() == []
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        index = client.get_model_repository_index()
        assert index == [{"name": "brightness", "version": "1", "state": "READY", "reason": ""}]
        (stats,) = client.get_inference_statistics("brightness")["model_stats"]
        assert stats["inference_stats"]["success"]["count"] == 13
        assert stats["inference_count"] == 17
        assert stats["execution_count"] == 15  # three pictures are three runs
        assert stats["inference_stats"]["fail"]["count"] == 0
        assert stats["inference_stats"]["compute_infer"]["ns"] > 0
        sizes = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]}
        assert sizes == {1: 14, 3: 1}


async def test_the_http_client(plant: Plant) -> None:
    plant.package(batch=True)
    worker = await plant.start(definition("solder"), management_token="secret")
    await asyncio.to_thread(use_http, worker.port)
    await worker.until(lambda: worker.reports and worker.reports[-1].models)
    report = await worker.until(lambda: next((m for m in worker.reports[-1].models if m.success == 13), None))
    assert (report.name, report.version, report.inference_count, report.exec_count) == ("brightness", "1", 17, 15)
    assert report.request_us >= report.compute_infer_us > 0


async def test_the_asyncio_client(plant: Plant) -> None:
    plant.package(batch=True)
    worker = await plant.start(definition("solder"))
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{worker.port}") as client:
        assert await client.is_server_ready()
        assert (await client.get_model_config("brightness"))["max_batch_size"] == 64
        results = await asyncio.gather(*(client.infer("brightness", [tensor(0.9)]) for _ in range(20)))
        assert all(label(result) == ["bright"] for result in results)
        assert label(await client.infer("brightness", [pictures(0.1)])) == ["dark"]
        assert label(await client.infer("brightness", [tensor(0.1, binary=False)])) == ["dark"]
        many = tensor(0.9, batch=200)  # a JSON reply that is worth compressing
        output = [triton_aio.InferRequestedOutput("logits", binary_data=False)]
        for algorithm in ("gzip", "deflate"):
            result = await client.infer(
                "brightness",
                [many],
                outputs=output,
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            assert label(result) == ["bright"] * 200
        with pytest.raises(InferenceServerException, match="NaN or infinity"):
            await client.infer("brightness", [tensor(float("nan"))])
        stats = await client.get_inference_statistics()
        assert stats["model_stats"][0]["inference_stats"]["fail"]["count"] == 1
        assert await client.get_model_repository_index()


async def test_any_model_is_served_without_a_service(plant: Plant) -> None:
    """Also one with several inputs of several types, free sizes and text, which is no classifier."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Identity", ["words"], ["same"]),
        helper.make_node("Cast", ["a"], ["half"], to=TensorProto.FLOAT16),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "mixed",
        [
            info("a", TensorProto.FLOAT, ["n", "m"]),
            info("b", TensorProto.FLOAT, ["n", "m"]),
            info("words", TensorProto.STRING, ["k"]),
        ],
        [
            info("sum", TensorProto.FLOAT, ["n", "m"]),
            info("same", TensorProto.STRING, ["k"]),
            info("half", TensorProto.FLOAT16, ["n", "m"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    directory = plant.root / "models" / "mixed"
    directory.mkdir(parents=True)
    onnx.save(model, directory / "model.onnx")
    manifest = Manifest(
        name="mixed",
        version="2.1.0",
        task="tensors",
        input=InputSpec(width=1, height=1),
        output=OutputSpec(kind="none"),
        variants=[Variant(file="model.onnx")],
    )
    seal_package(directory, manifest)
    plant.packages["mixed@2.1.0"] = directory
    plant.packages[f"{MODEL}@1"] = make_tiny64(plant.root / "models" / MODEL)
    worker = await plant.start(models=["mixed@2.1.0", f"{MODEL}@1"])

    async with triton_aio.InferenceServerClient(f"127.0.0.1:{worker.port}") as client:
        values = np.array([[1.0, 2.0, np.nan]], np.float32)
        inputs = []
        for name in ("a", "b"):
            given = triton_aio.InferInput(name, [1, 3], "FP32")
            given.set_data_from_numpy(values)
            inputs.append(given)
        words = triton_aio.InferInput("words", [2], "BYTES")
        words.set_data_from_numpy(np.array(["Lötstelle", ""], dtype=object))
        for name, version in (("mixed", ""), ("mixed", "2001000"), ("mixed", "2.1.0"), ("mixed@2.1.0", "")):
            result = await client.infer(name, [*inputs, words], model_version=version)
            assert np.array_equal(result.as_numpy("sum"), values * 2, equal_nan=True)
            assert [word.decode() for word in result.as_numpy("same")] == ["Lötstelle", ""]
            assert result.as_numpy("half").dtype == np.float16
            assert result.get_response()["model_version"] == "2001000"
        assert (await client.get_model_metadata("mixed"))["versions"] == ["2001000"]
        assert (await client.get_model_config("mixed"))["parameters"]["package"]["string_value"] == "mixed@2.1.0"
        bf16 = triton_aio.InferInput("input", [1, 3, 64, 64], "FP32")
        bf16.set_data_from_numpy(np.zeros((1, 3, 64, 64), np.float32))
        assert (await client.infer(MODEL, [bf16])).as_numpy("logits").shape == (1, 5)
        jpeg = triton_aio.InferInput("input", [1], "BYTES")
        jpeg.set_data_from_numpy(np.array([picture(0.5, kind=".jpg")], dtype=object))
        assert (await client.infer(MODEL, [jpeg])).as_numpy("logits").shape == (1, 5)


async def test_a_picture_in_and_a_small_answer_out(plant: Plant) -> None:
    plant.package()
    plant.packages[f"{MODEL}@1"] = make_tiny64(plant.root / "models" / MODEL)
    await plant.start(definition("solder"), models=[f"{MODEL}@1"])
    jpeg = picture(0.9, kind=".jpg")
    status, answer, _ = await plant.post("/v1/models/brightness/image", jpeg)
    assert status == 200
    assert (answer["label"], answer["index"], answer["model"]) == ("bright", 2, "brightness@1")
    assert 0.5 < answer["score"] <= 1
    assert set(answer["timings_ms"]) == {"queue", "decode", "infer", "encode"}
    status, answer, _ = await plant.post(f"/v1/models/{MODEL}@1/image", jpeg)
    assert status == 200
    assert answer["outputs"][0]["shape"] == [1, 5]
    for body, kind, wanted in (
        (b"junk", "image/jpeg", 400),
        (b"", "image/jpeg", 400),
        (jpeg, "multipart/form-data; boundary=x", 415),
    ):
        status, answer, _ = await plant.post("/v1/models/brightness/image", body, **{"Content-Type": kind})
        assert (status, bool(answer["error"])) == (wanted, True)
    assert (await plant.post("/v1/models/nope/image", jpeg))[0] == 404


async def test_raw_tensors_come_back_as_json_on_request(plant: Plant) -> None:
    plant.package()
    await plant.start(definition("solder"))
    body = np.full(SHAPE, 0.9, np.float32).tobytes()
    raw = {"Inference-Header-Content-Length": "0"}
    status, answer, headers = await plant.post("/v2/models/brightness/infer?output=json", body, **raw)
    assert status == 200
    assert "Inference-Header-Content-Length" not in headers
    assert LABELS[int(np.argmax(answer["outputs"][0]["data"]))] == "bright"


async def test_pictures_as_base64(plant: Plant) -> None:
    import base64

    plant.package()
    await plant.start(definition("solder"))
    data = base64.b64encode(picture(0.9, side=300, kind=".png", seed=1)).decode()
    assert len(data) > 32 << 10  # so large that it is not read in the loop
    entry = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [data]}
    text = json.dumps({"inputs": [entry | {"parameters": {"content_type": "base64"}}]})
    status, answer, _ = await plant.post("/v2/models/brightness/infer", text)
    assert status == 200
    assert LABELS[int(np.argmax(answer["outputs"][0]["data"]))] == "bright"


async def test_a_client_that_hangs_up_is_counted_and_its_work_dropped(plant: Plant) -> None:
    plant.package(work=400)
    worker = await plant.start(definition("solder", deadline_ms=20000), threads=1)
    body = np.full(SHAPE, 0.9, np.float32).tobytes()
    head = (
        f"POST /v2/models/brightness/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for _ in range(4):
        _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
        writer.write(head + body)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.close()
    report = await worker.until(
        lambda: next((m for r in worker.reports[-1:] for m in r.models if m.canceled + m.success == 4), None)
    )
    assert report.canceled >= 3
    assert report.pending == 0


@pytest.mark.parametrize(
    ("own", "priority", "found"),
    [
        ("inline", 0, "inline"),
        ("inline", 1, "inline"),
        ("inline", 2, "audit"),
        ("alarm", 2, "inline"),
        ("audit", 9, "audit"),
    ],
)
def test_nobody_gets_above_the_class_of_the_model(own: Any, priority: int, found: str) -> None:
    assert request_class(own, priority) == found


async def test_only_the_newest_frame_of_a_stream_waits(plant: Plant) -> None:
    plant.package(work=400)
    worker = await plant.start(definition("solder", deadline_ms=20000), threads=1)
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{worker.port}") as client:

        async def frame(number: int) -> str:
            await asyncio.sleep(number * 0.005)  # the first one runs by the time the second comes
            try:
                await client.infer("brightness", [tensor(0.5)], parameters={"stream": "left"})
            except InferenceServerException as error:
                return str(error.message())
            return "answered"

        outcomes = await asyncio.gather(*(frame(number) for number in range(5)))
    assert outcomes[-1] == "answered"
    assert sum("a newer frame" in outcome for outcome in outcomes) >= 2


def test_load_and_unload_with_the_token(tmp_path: Path) -> None:
    package = make_tiny64(tmp_path / "package")
    with Edged(tmp_path / "state") as edged:
        ref = edged.add_model(package)
        assert ref == f"{MODEL}@1"
        port = edged.status().addresses.inference.rpartition(":")[2]
        token = {"Edged-Management": (tmp_path / "state" / "management-token").read_text().strip()}
        given = triton.InferInput("input", [1, 3, 64, 64], "FP32")
        given.set_data_from_numpy(np.zeros((1, 3, 64, 64), np.float32))
        with triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120) as client:
            (entry,) = wait_for(client.get_model_repository_index)
            assert (entry["name"], entry["version"], entry["state"]) == (MODEL, "1", "UNAVAILABLE")
            assert entry["reason"] == "installed, but not served"
            with pytest.raises(InferenceServerException, match="Edged-Management"):
                client.load_model(MODEL)
            with pytest.raises(InferenceServerException, match="Edged-Management"):
                client.load_model(MODEL, headers={"Edged-Management": "wrong"})
            with pytest.raises(InferenceServerException, match="no file can be sent"):
                client.load_model(MODEL, headers=token, config="{}")
            with pytest.raises(InferenceServerException, match="failed to load 'nope'"):
                client.load_model("nope", headers=token)
            client.load_model(MODEL, headers=token)
            assert client.get_model_repository_index()[0]["state"] == "READY"
            assert client.infer(MODEL, [given]).as_numpy("logits").shape == (1, 5)
            client.unload_model(MODEL, headers=token)
            assert not client.is_model_ready(MODEL)
            assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"


def test_struct_of_a_picture_is_what_the_client_makes() -> None:
    """The helper above and the wire agree: a length and the file."""
    data = pictures(0.5)._get_binary_data()
    assert struct.unpack_from("<I", data)[0] == len(data) - 4
