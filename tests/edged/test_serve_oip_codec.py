"""Open Inference Protocol bodies: what is accepted, what is refused, and the exact bytes of replies."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edged.serve.oip_codec import (
    DATATYPES,
    InferRequest,
    RequestError,
    Signature,
    encode_response,
    parse_request,
)
from edgekit.runtimes.base import TensorInfo

IMAGE = TensorInfo("input", (None, 3, 2, 2), "float32")
SIGNATURE = Signature("m", [IMAGE], [TensorInfo("logits", (None, 2), "float32")], "input")
FIXED = Signature("m", [TensorInfo("input", (1, 4), "float32")], [TensorInfo("logits", (1, 2), "float32")], "")
DATA = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)


def body(header: dict[str, Any], *tensors: bytes) -> tuple[bytes, str]:
    head = json.dumps(header).encode()
    return head + b"".join(tensors), str(len(head))


def one(shape: list[int], datatype: str = "FP32", **rest: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "shape": shape, "datatype": datatype, **rest}]}


def test_json_flat_and_nested_mean_the_same() -> None:
    for data in (DATA.ravel().tolist(), DATA.tolist()):
        request = parse_request(json.dumps(one([1, 3, 2, 2], data=data)).encode(), None, SIGNATURE)
        assert np.array_equal(request.arrays["input"], DATA)
        assert request.arrays["input"].dtype == np.float32
        assert request.outputs == [("logits", False)]


def test_binary_with_id_and_binary_output() -> None:
    header = one([1, 3, 2, 2], parameters={"binary_data_size": 48})
    data, length = body(header | {"id": "42", "parameters": {"binary_data_output": True}}, DATA.tobytes())
    request = parse_request(data, length, SIGNATURE)
    assert np.array_equal(request.arrays["input"], DATA)
    assert (request.id, request.outputs) == ("42", [("logits", True)])
    assert request.arrays["input"].flags.aligned


def test_binary_size_may_be_left_out() -> None:
    data, length = body(one([1, 3, 2, 2]), DATA.tobytes())
    assert np.array_equal(parse_request(data, length, SIGNATURE).arrays["input"], DATA)


def test_json_and_binary_inputs_mix_in_order() -> None:
    signature = Signature("m", [TensorInfo("a", (2,), "int64"), TensorInfo("b", (2,), "uint8")], [], "")
    header = {
        "inputs": [
            {"name": "b", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
            {"name": "a", "shape": [2], "datatype": "INT64", "data": [-1, 1 << 40]},
        ]
    }
    data, length = body(header, b"\x07\x09")
    request = parse_request(data, length, signature)
    assert request.arrays["a"].tolist() == [-1, 1 << 40]
    assert request.arrays["b"].tolist() == [7, 9]


def test_raw_body_is_the_one_input() -> None:
    request = parse_request(DATA.tobytes(), "0", SIGNATURE)
    assert request.arrays["input"].shape == (1, 3, 2, 2)
    assert request.outputs == [("logits", True)]
    with pytest.raises(RequestError, match="Expected 48, got 47"):
        parse_request(DATA.tobytes()[:-1], "0", SIGNATURE)


def test_pictures_as_bytes() -> None:
    pictures = [b"\xff\xd8one", b"", b"\x89PNGthree"]
    packed = b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)
    data, length = body(one([3], "BYTES", parameters={"binary_data_size": len(packed)}), packed)
    assert parse_request(data, length, SIGNATURE).pictures == {"input": pictures}


@pytest.mark.parametrize(
    ("shape", "packed"),
    [
        ([2], struct.pack("<I", 3) + b"abc"),
        ([1], struct.pack("<I", 4) + b"abc"),
        ([1], struct.pack("<I", 3) + b"abcd"),
        ([1], struct.pack("<I", 0xFFFFFFFF) + b"abc"),
        ([1], b"\x01"),
        ([65], struct.pack("<I", 0) * 65),
    ],
)
def test_torn_pictures_are_refused(shape: list[int], packed: bytes) -> None:
    data, length = body(one(shape, "BYTES", parameters={"binary_data_size": len(packed)}), packed)
    with pytest.raises(RequestError):
        parse_request(data, length, SIGNATURE)


def test_pictures_for_a_model_that_takes_none() -> None:
    data, length = body(one([1], "BYTES", parameters={"binary_data_size": 4}), bytes(4))
    with pytest.raises(RequestError, match=r"data-type is 'BYTES', but model 'm' expects 'FP32'"):
        parse_request(data, length, FIXED)


GOOD = one([1, 4], data=[1, 2, 3, 4])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"inputs": []}, "expected 1 inputs but got 0 inputs"),
        ({}, "failed to parse the request JSON buffer"),
        (GOOD | {"inputs": GOOD["inputs"] * 2}, "given twice"),
        (
            one([1, 4], data=[1, 2, 3, 4]) | {"outputs": [{"name": "zzz"}]},
            "unexpected inference output 'zzz' for model",
        ),
        (one([1, 4], data=[1, 2, 3]), "does not have the shape"),
        (one([1, 4], data=[[1, 2], [3, 4]]), "does not have the shape"),
        (one([1, 4], data=[[1, 2], [3]]), "rows differ in length"),
        (one([1, 4], data=["1", "2", "3", "4"]), "float32 numbers belong there"),
        (one([1, 4], data=[1, 2, 3, None]), "float32 numbers belong there"),
        (one([1, 4], data=[1, 2, 3, 1e300]), "NaN or infinity"),
        (one([1, 4]), "no data"),
        (one([1, 5], data=[1, 2, 3, 4, 5]), r"Expected \[1,4\], got \[1,5\]"),
        (one([4], data=[1, 2, 3, 4]), r"Expected \[1,4\], got \[4\]"),
        (one([-1, 4], data=[1, 2, 3, 4]), "not usable"),
        (one([0, 4], data=[]), "not usable"),
        (one([1 << 40, 4], data=[]), "not usable"),
        (one([1, 4], "UINT8", data=[1, 2, 3, 4]), r"data-type is 'UINT8', but model 'm' expects 'FP32'"),
        (one([1, 4], "nonsense", data=[1, 2, 3, 4]), "data-type is 'nonsense'"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}, "unexpected inference input 'x'"),
        (GOOD | {"parameters": {"triton_enable": True}}, "reserved for Triton"),
        (one([1, 4], parameters={"shared_memory_region": "r"}), "shared memory"),
        (one([1, 4], data=[1, 2, 3, 4], parameters={"binary_data_size": 0}), "both"),
        (one([1, 4], parameters={"binary_data_size": -1}), "number of bytes"),
        (one([1, 4], parameters={"binary_data_size": True}), "number of bytes"),
        (
            GOOD | {"outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
            "'classification' is not supported",
        ),
        (GOOD | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "true or false"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(header: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(json.dumps(header).encode(), None, FIXED)


def test_binary_sizes_must_match_exactly() -> None:
    short, length = body(one([1, 3, 2, 2], parameters={"binary_data_size": 48}), DATA.tobytes()[:-8])
    with pytest.raises(RequestError, match="expecting 8 additional bytes for model 'm'"):
        parse_request(short, length, SIGNATURE)
    long, length = body(one([1, 3, 2, 2], parameters={"binary_data_size": 48}), DATA.tobytes(), b"x")
    with pytest.raises(RequestError, match="unexpected additional input data for model 'm'"):
        parse_request(long, length, SIGNATURE)
    wrong, length = body(one([1, 3, 2, 2], parameters={"binary_data_size": 16}), bytes(16))
    with pytest.raises(RequestError, match="Expected 48, got 16"):
        parse_request(wrong, length, SIGNATURE)


@pytest.mark.parametrize("length", ["1000000", "-1", "1.5", "abc", "", "9" * 40, "٣"])
def test_bad_header_lengths(length: str) -> None:
    with pytest.raises(RequestError, match=r"(?i)header"):
        parse_request(json.dumps(GOOD).encode(), length, FIXED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_nan_gets_in(value: float) -> None:
    data = DATA.copy()
    data[0, 0, 0, 0] = value
    for raw, length in (
        body(one([1, 3, 2, 2], parameters={"binary_data_size": 48}), data.tobytes()),
        (data.tobytes(), "0"),
    ):
        with pytest.raises(RequestError, match="NaN or infinity"):
            parse_request(raw, length, SIGNATURE)
    with pytest.raises(RequestError):
        parse_request(json.dumps(one([1, 3, 2, 2], data=data.tolist())).encode(), None, SIGNATURE)


def test_integers_must_fit() -> None:
    signature = Signature("m", [TensorInfo("input", (2,), "uint8")], [], "")
    for data in ([1, 256], [-1, 0], [1.5, 2], [1 << 80, 0], [True, False]):
        with pytest.raises(RequestError):
            parse_request(json.dumps(one([2], "UINT8", data=data)).encode(), None, signature)


def test_deep_json_is_refused_not_fatal() -> None:
    text = b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":' + b"[" * 200_000
    with pytest.raises(RequestError):
        parse_request(text, None, FIXED)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-5, 400).map(str)))
def test_any_bytes_give_a_request_or_a_refusal(data: bytes, length: str | None) -> None:
    try:
        request = parse_request(data, length, SIGNATURE)
    except RequestError:
        return
    assert request.arrays or request.pictures


def test_reply_bytes_are_those_of_triton() -> None:
    result = np.array([[-0.07678147405385971, 0.12550751864910126]], np.float32)
    request = InferRequest(id="42", outputs=[("logits", True)])
    encoded, length = encode_response("tiny", "1", request, {"logits": result})
    head = (
        b'{"id":"42","model_name":"tiny","model_version":"1","outputs":[{"name":"logits","datatype":"FP32",'
        b'"shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    )
    assert (encoded, length) == (head + result.tobytes(), len(head))
    encoded, length = encode_response("tiny", "1", InferRequest(outputs=[("logits", False)]), {"logits": result})
    assert length is None
    assert encoded == (
        b'{"model_name":"tiny","model_version":"1","outputs":[{"name":"logits","datatype":"FP32","shape":[1,2],'
        b'"data":[-0.07678147405385971,0.12550751864910126]}]}'
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_a_reply_carries_can_be_sent_back(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(DATATYPES)))
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if name.startswith("float") else {}
    array = data.draw(hnp.arrays(name, shape, elements=hnp.from_dtype(np.dtype(name), **finite)))
    binary = data.draw(st.booleans()) or name == "float16"
    encoded, length = encode_response("m", "1", InferRequest(outputs=[("t", binary)]), {"t": array})
    head = json.loads(encoded[:length])
    again = {"inputs": head["outputs"]}
    signature = Signature("m", [TensorInfo("t", tuple(None for _ in shape), name)], [], "")
    tail = encoded[length:] if length is not None else b""
    sent, sent_length = body(again, tail)
    request = parse_request(sent, sent_length if length is not None else None, signature)
    assert np.array_equal(request.arrays["t"], array)
    assert request.arrays["t"].dtype == array.dtype


def test_whole_numbers_beyond_int64_stay_exact_beside_small_ones() -> None:
    signature = Signature("m", [TensorInfo("t", (2,), "uint64")], [], "")
    sent, _ = body({"inputs": [{"name": "t", "datatype": "UINT64", "shape": [2], "data": [2**63 + 1, 0]}]}, b"")
    assert parse_request(sent, None, signature).arrays["t"].tolist() == [2**63 + 1, 0]
