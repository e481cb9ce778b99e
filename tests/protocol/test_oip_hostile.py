"""Requests that are almost right, made at random: the codec refuses with a sentence, the worker with JSON."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.serve.oip.request import read_request
from edged.serve.oip.signature import signature
from edged.serve.oip.tensors import Feeds, RequestError
from edgekit.runtimes.base import TensorInfo
from tests.support.models import SIDE, picture
from tests.support.plant import Plant, definition

SIGNATURES = [
    signature("m", [TensorInfo("input", (None, 3, 4, 4), "float32")], [TensorInfo("o", (None, 2), "float32")], "input"),
    signature("m", [TensorInfo("input", (2, None), "int8")], [TensorInfo("o", (), "float32")]),
    signature("m", [TensorInfo("input", (None,), "object")], []),
    signature("m", [TensorInfo("input", (), "bool"), TensorInfo("b", (None, None), "float16")], []),
]

leaves: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
datatypes = st.sampled_from(["FP32", "FP16", "BF16", "INT8", "UINT8", "BYTES", "BOOL", "UINT64", "nonsense"])
shapes = st.lists(st.one_of(st.integers(-1, 5), st.sampled_from([2**31, 2**63, 10**30])), max_size=10)
parameters = st.dictionaries(
    st.sampled_from(
        [
            "binary_data_size",
            "binary_data",
            "classification",
            "content_type",
            "shared_memory_region",
            "binary_data_output",
            "priority",
            "timeout",
            "stream",
            "timings",
            "triton_x",
            "own",
        ]
    ),
    st.one_of(values, st.integers(0, 200), st.just("base64"), st.booleans()),
    max_size=3,
)
entries = st.fixed_dictionaries(
    {"name": st.sampled_from(["input", "b", "x"]), "shape": shapes, "datatype": datatypes},
    optional={"data": values, "parameters": parameters},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(entries, max_size=3)},
    optional={
        "id": leaves,
        "parameters": parameters,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["o", "x"])}, optional={"parameters": parameters}),
            max_size=3,
        ),
    },
)


def check(feeds: Feeds, wanted: Any) -> None:
    """What is accepted fits the model."""
    for name, array in feeds.arrays.items():
        info = wanted.inputs[name].info
        assert array.dtype == np.dtype(info.dtype)
        assert info.accepts(array.shape)
    for pixels in feeds.pixels.values():
        assert pixels.ndim == 4 and pixels.dtype == np.uint8
    assert set(feeds.arrays) | set(feeds.pixels) | set(feeds.pictures) == set(wanted.inputs)


@settings(max_examples=400, deadline=None)
@given(requests, st.binary(max_size=200), st.sampled_from(SIGNATURES), st.integers(-3, 3))
def test_what_is_accepted_fits_the_model(header: Any, tail: bytes, wanted: Any, off: int) -> None:
    head = json.dumps(header).encode()
    for length in (None, str(len(head) + off), "0"):
        try:
            feeds = read_request(head + tail, length, wanted).feeds()
        except RequestError as error:
            assert str(error)
            continue
        check(feeds, wanted)


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    await plant.close()


async def test_a_worker_answers_all_of_it_with_json(plant: Plant) -> None:
    plant.package(batch=True)
    worker = await plant.start(definition("solder"))
    seen: set[int] = set()

    def bombard() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(requests, st.binary(max_size=200), st.sampled_from([None, -1, 0, 1]), st.booleans())
        def one(header: Any, tail: bytes, off: int | None, encoded: bool) -> None:
            head = json.dumps(header).encode()
            headers = {} if off is None else {"Inference-Header-Content-Length": str(len(head) + off)}
            if encoded:
                headers["Content-Encoding"] = "gzip"
            connection.request("POST", "/v2/models/brightness/infer", head + tail, headers)
            response = connection.getresponse()
            answer = response.read()
            seen.add(response.status)
            assert response.status in (200, 400, 404, 413, 501, 503), answer
            if response.status != 200:
                assert json.loads(answer)["error"]

        one()
        connection.close()

    await asyncio.to_thread(bombard)
    assert 400 in seen
    body = np.full((1, 3, SIDE, SIDE), 0.5, np.float32).tobytes()
    assert (await plant.post("/v1/models/brightness/image", picture(0.5)))[0] == 200
    raw = {"Inference-Header-Content-Length": "0"}
    assert (await plant.post("/v2/models/brightness/infer?output=json", body, **raw))[0] == 200
