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

from edged.serve.oip.datatypes import DATATYPES, Array, all_finite, from_bfloat16, pack_bytes, unpack_bytes
from edged.serve.oip.models import protocol_version
from edged.serve.oip.reply import classified, encode_outputs, model_prefix
from edged.serve.oip.request import InferRequest, PlainRequest, Wanted, read_request
from edged.serve.oip.signature import Signature, signature
from edged.serve.oip.tensors import Feeds, RequestError, Unsupported
from edgekit.packages import version_key
from edgekit.runtimes import ModelError
from edgekit.runtimes.base import TensorInfo

IMAGE = TensorInfo("input", (None, 3, 2, 2), "float32")
SIGNATURE = signature("m", [IMAGE], [TensorInfo("logits", (None, 2), "float32")], "input")
FIXED = signature("m", [TensorInfo("input", (1, 4), "float32")], [TensorInfo("logits", (1, 2), "float32")])
DATA = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)


def feeds(data: bytes, length: str | None, wanted: Signature) -> Feeds:
    return read_request(data, length, wanted).feeds()


def encode(request: InferRequest, results: dict[str, Array]) -> tuple[bytes, int | None]:
    encoded = encode_outputs(request.outputs, results, request.signature)
    buffers, length = encoded.body(model_prefix("tiny", "1"), request.id)
    return b"".join(buffers), length


def reply(*outputs: Wanted, id: str | None = None, of: Signature = SIGNATURE) -> InferRequest:
    return InferRequest(of, [], list(outputs), id=id)


def body(header: dict[str, Any], *tensors: bytes) -> tuple[bytes, str]:
    head = json.dumps(header).encode()
    return head + b"".join(tensors), str(len(head))


def one(shape: list[int], datatype: str = "FP32", **rest: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "shape": shape, "datatype": datatype, **rest}]}


def test_json_flat_and_nested_mean_the_same() -> None:
    for data in (DATA.ravel().tolist(), DATA.tolist()):
        request = read_request(json.dumps(one([1, 3, 2, 2], data=data)).encode(), None, SIGNATURE)
        array = request.feeds().arrays["input"]
        assert np.array_equal(array, DATA)
        assert array.dtype == np.float32
        assert request.outputs == [Wanted("logits")]


def test_binary_with_id_and_binary_output() -> None:
    header = one([1, 3, 2, 2], parameters={"binary_data_size": 48})
    data, length = body(header | {"id": "42", "parameters": {"binary_data_output": True}}, DATA.tobytes())
    request = read_request(data, length, SIGNATURE)
    array = request.feeds().arrays["input"]
    assert np.array_equal(array, DATA)
    assert (request.id, request.outputs, request.batch) == ("42", [Wanted("logits", True)], 1)
    assert array.flags.aligned


def test_binary_size_may_be_left_out() -> None:
    data, length = body(one([1, 3, 2, 2]), DATA.tobytes())
    assert np.array_equal(feeds(data, length, SIGNATURE).arrays["input"], DATA)


def test_json_and_binary_inputs_mix_in_order() -> None:
    wanted = signature("m", [TensorInfo("a", (2,), "int64"), TensorInfo("b", (2,), "uint8")], [])
    header = {
        "inputs": [
            {"name": "b", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
            {"name": "a", "shape": [2], "datatype": "INT64", "data": [-1, 1 << 40]},
        ]
    }
    data, length = body(header, b"\x07\x09")
    request = feeds(data, length, wanted)
    assert request.arrays["a"].tolist() == [-1, 1 << 40]
    assert request.arrays["b"].tolist() == [7, 9]


def test_raw_body_is_the_one_input() -> None:
    request = read_request(DATA.tobytes(), "0", SIGNATURE)
    assert request.feeds().arrays["input"].shape == (1, 3, 2, 2)
    assert request.outputs == [Wanted("logits", True)]
    assert read_request(DATA.tobytes(), "0", SIGNATURE, json_output=True).outputs == [Wanted("logits")]
    with pytest.raises(RequestError, match="Expected 48, got 47"):
        feeds(DATA.tobytes()[:-1], "0", SIGNATURE)


def test_pictures_as_bytes() -> None:
    pictures = [b"\xff\xd8one", b"", b"\x89PNGthree"]
    packed = b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)
    data, length = body(one([3], "BYTES", parameters={"binary_data_size": len(packed)}), packed)
    assert feeds(data, length, SIGNATURE).pictures == {"input": pictures}


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
        feeds(data, length, SIGNATURE)


def test_pictures_for_a_model_that_takes_none() -> None:
    data, length = body(one([1], "BYTES", parameters={"binary_data_size": 4}), bytes(4))
    with pytest.raises(RequestError, match=r"data-type is 'BYTES', but model 'm' expects 'FP32'"):
        feeds(data, length, FIXED)


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
        (one([1, 4], data=[1, 2, 3]), "Shape does not match true shape"),
        (one([1, 4], data=[[1, 2], [3, 4]]), "Shape does not match true shape"),
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
            GOOD | {"outputs": [{"name": "logits", "parameters": {"classification": -2}}]},
            "'classification' must be a whole number",
        ),
        (GOOD | {"outputs": [{"name": "logits"}] * 2}, "asked for twice"),
        (GOOD | {"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
        (GOOD | {"parameters": {"priority": "high"}}, "'priority' must be a whole number"),
        (GOOD | {"parameters": {"timeout": 1.5}}, "'timeout' must be a whole number"),
        (GOOD | {"parameters": {"timings": 1}}, "'timings' must be true or false"),
        (GOOD | {"parameters": {"stream": 7}}, "'stream' must be text"),
        (GOOD | {"parameters": {"binary_data_output": "yes"}}, "'binary_data_output' must be true or false"),
        (GOOD | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "true or false"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(header: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        feeds(json.dumps(header).encode(), None, FIXED)


def test_binary_sizes_must_match_exactly() -> None:
    short, length = body(one([1, 3, 2, 2], parameters={"binary_data_size": 48}), DATA.tobytes()[:-8])
    with pytest.raises(RequestError, match="expecting 8 additional bytes for model 'm'"):
        feeds(short, length, SIGNATURE)
    long, length = body(one([1, 3, 2, 2], parameters={"binary_data_size": 48}), DATA.tobytes(), b"x")
    with pytest.raises(RequestError, match="unexpected additional input data for model 'm'"):
        feeds(long, length, SIGNATURE)
    wrong, length = body(one([1, 3, 2, 2], parameters={"binary_data_size": 16}), bytes(16))
    with pytest.raises(RequestError, match="Expected 48, got 16"):
        feeds(wrong, length, SIGNATURE)


@pytest.mark.parametrize("length", ["1000000", "-1", "1.5", "abc", "", "9" * 40, "٣"])
def test_bad_header_lengths(length: str) -> None:
    with pytest.raises(RequestError, match=r"(?i)header"):
        feeds(json.dumps(GOOD).encode(), length, FIXED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_nan_gets_in(value: float) -> None:
    data = DATA.copy()
    data[0, 0, 0, 0] = value
    for raw, length in (
        body(one([1, 3, 2, 2], parameters={"binary_data_size": 48}), data.tobytes()),
        (data.tobytes(), "0"),
    ):
        with pytest.raises(RequestError, match="NaN or infinity"):
            feeds(raw, length, SIGNATURE)
    with pytest.raises(RequestError):
        feeds(json.dumps(one([1, 3, 2, 2], data=data.tolist())).encode(), None, SIGNATURE)


def test_integers_must_fit() -> None:
    wanted = signature("m", [TensorInfo("input", (2,), "uint8")], [])
    for data in ([1, 256], [-1, 0], [1.5, 2], [1 << 80, 0], [True, False]):
        with pytest.raises(RequestError):
            feeds(json.dumps(one([2], "UINT8", data=data)).encode(), None, wanted)


def test_deep_json_is_refused_not_fatal() -> None:
    text = b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":' + b"[" * 200_000
    with pytest.raises(RequestError):
        feeds(text, None, FIXED)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-5, 400).map(str)))
def test_any_bytes_give_a_request_or_a_refusal(data: bytes, length: str | None) -> None:
    try:
        request = feeds(data, length, SIGNATURE)
    except RequestError:
        return
    assert request.arrays or request.pictures


def test_reply_bytes_are_those_of_triton() -> None:
    result = np.array([[-0.07678147405385971, 0.12550751864910126]], np.float32)
    encoded, length = encode(reply(Wanted("logits", True), id="42"), {"logits": result})
    head = (
        b'{"id":"42","model_name":"tiny","model_version":"1","outputs":[{"name":"logits","datatype":"FP32",'
        b'"shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    )
    assert (encoded, length) == (head + result.tobytes(), len(head))
    encoded, length = encode(reply(Wanted("logits")), {"logits": result})
    assert length is None
    assert encoded == (
        b'{"model_name":"tiny","model_version":"1","outputs":[{"name":"logits","datatype":"FP32","shape":[1,2],'
        b'"data":[-0.07678147405385971,0.12550751864910126]}]}'
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_a_reply_carries_can_be_sent_back(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(DATATYPES.keys() - {"object"})))
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if name.startswith("float") else {}
    array = data.draw(hnp.arrays(name, shape, elements=hnp.from_dtype(np.dtype(name), **finite)))
    binary = data.draw(st.booleans()) or name == "float16"
    encoded, length = encode(reply(Wanted("t", binary)), {"t": array})
    head = json.loads(encoded[:length])
    again = {"inputs": head["outputs"]}
    wanted = signature("m", [TensorInfo("t", tuple(None for _ in shape), name)], [])
    tail = encoded[length:] if length is not None else b""
    sent, sent_length = body(again, tail)
    again_array = feeds(sent, sent_length if length is not None else None, wanted).arrays["t"]
    assert np.array_equal(again_array, array)
    assert again_array.dtype == array.dtype


def test_whole_numbers_beyond_int64_stay_exact_beside_small_ones() -> None:
    wanted = signature("m", [TensorInfo("t", (2,), "uint64")], [])
    sent, _ = body({"inputs": [{"name": "t", "datatype": "UINT64", "shape": [2], "data": [2**63 + 1, 0]}]}, b"")
    assert feeds(sent, None, wanted).arrays["t"].tolist() == [2**63 + 1, 0]


def test_text_goes_through_as_bytes_and_as_json() -> None:
    wanted = signature("m", [TensorInfo("t", (None,), "object")], [TensorInfo("t", (None,), "object")])
    words = ["", "Lötstelle", "x" * 300]
    packed = pack_bytes(word.encode() for word in words)
    entry = {"name": "t", "datatype": "BYTES", "shape": [3]}
    data, length = body({"inputs": [entry | {"parameters": {"binary_data_size": len(packed)}}]}, packed)
    binary = feeds(data, length, wanted).arrays["t"]
    plain = feeds(json.dumps({"inputs": [entry | {"data": words}]}).encode(), None, wanted).arrays["t"]
    assert binary.tolist() == plain.tolist() == words
    encoded, length_of_json = encode(reply(Wanted("t", True), of=wanted), {"t": binary})
    assert encoded[length_of_json:] == packed
    encoded, _ = encode(reply(Wanted("t"), of=wanted), {"t": binary})
    assert json.loads(encoded)["outputs"][0] == entry | {"data": words}
    with pytest.raises(RequestError, match="not UTF-8"):
        feeds(b"\xff", "0", signature("m", [TensorInfo("t", (1,), "object")], []))


def test_pictures_as_base64_in_json() -> None:
    entry = {"name": "input", "datatype": "BYTES", "shape": [2], "data": ["/9g=", "iVBO"]}
    text = json.dumps({"inputs": [entry | {"parameters": {"content_type": "base64"}}]}).encode()
    assert feeds(text, None, SIGNATURE).pictures == {"input": [b"\xff\xd8", b"\x89PN"]}
    for bad in ({}, {"parameters": {"content_type": "base64"}, "data": ["/9g=", "not base64"]}):
        with pytest.raises(RequestError, match="base64"):
            feeds(json.dumps({"inputs": [entry | bad]}).encode(), None, SIGNATURE)


@pytest.mark.parametrize("shape", [[5, 7, 3], [1, 5, 7, 1], [2, 4, 4, 4]])
def test_raw_pixels_stand_for_a_picture(shape: list[int]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8)
    data, length = body(one(shape, "UINT8", parameters={"binary_data_size": pixels.size}), pixels.tobytes())
    request = read_request(data, length, SIGNATURE)
    found = request.feeds().pixels["input"]
    assert found.ndim == 4
    assert np.array_equal(found.ravel(), pixels)
    assert request.batch == found.shape[0]
    text = json.dumps(one(shape, "UINT8", data=pixels.tolist())).encode()
    assert np.array_equal(feeds(text, None, SIGNATURE).pixels["input"], found)
    with pytest.raises(RequestError, match="byte size mismatch"):
        read_request(*body(one(shape, "UINT8", parameters={"binary_data_size": 3}), b"abc"), SIGNATURE)


def test_a_model_of_uint8_pixels_gets_them_as_they_are() -> None:
    wanted = signature("m", [TensorInfo("input", (1, 2, 2, 3), "uint8")], [], "input")
    data, length = body(one([1, 2, 2, 3], "UINT8"), bytes(12))
    assert list(feeds(data, length, wanted).arrays) == ["input"]


def test_bf16_becomes_fp32() -> None:
    values = np.array([0.5, -2.0, 3.0, 1e30], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    data, length = body(one([1, 4], "BF16"), halves)
    found = feeds(data, length, FIXED).arrays["input"]
    assert found.dtype == np.float32
    assert np.array_equal(found[0], from_bfloat16(memoryview(halves)))
    assert np.allclose(found[0], values, rtol=2**-7)


def test_parameters_that_mean_something() -> None:
    header = GOOD | {
        "parameters": {"priority": 2, "timeout": 1500, "stream": "left", "timings": True, "lot": "A7", "station": 7.5}
    }
    request = read_request(json.dumps(header).encode(), None, FIXED)
    assert (request.priority, request.timeout_s, request.stream, request.timings) == (2, 0.0015, "left", True)
    assert read_request(json.dumps(GOOD).encode(), None, FIXED).timeout_s is None


def test_shared_memory_is_another_kind_of_refusal() -> None:
    with pytest.raises(Unsupported):
        read_request(json.dumps(one([1, 4], parameters={"shared_memory_region": "r"})).encode(), None, FIXED)


def test_classification_is_written_as_triton_does() -> None:
    row = np.array([[-0.0767, 0.12550751, 0.0462, 0.065807618, 0.0448]], np.float32)
    assert classified(row, 2, ()).tolist() == [["0.125508:1", "0.065808:3"]]
    assert classified(row, 1, list("abcde")).tolist() == [["0.125508:1:b"]]
    assert classified(np.array([3, 9, 9]), 9, ()).tolist() == ["9:1", "9:2", "3:0"]
    assert classified(np.zeros((2, 1, 3), np.float32), 1, ()).shape == (2, 1)
    encoded, length = encode(reply(Wanted("logits", True, 1)), {"logits": row})
    assert json.loads(encoded[:length])["outputs"] == [
        {"name": "logits", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 14}}
    ]
    with pytest.raises(RequestError, match="only numbers"):
        classified(np.array(["a"], dtype=object), 1, ())


def test_nan_comes_out_of_a_model_only_where_it_may() -> None:
    result = {"logits": np.array([[np.nan, 1]], np.float32)}
    loose = signature("m", [IMAGE], [TensorInfo("logits", (None, 2), "float32")], strict=False)
    assert encode(reply(Wanted("logits", True), of=loose), result)[1] is not None
    for refused in (reply(Wanted("logits"), of=loose), reply(Wanted("logits", True))):
        with pytest.raises(ModelError, match="NaN or infinity"):
            encode(refused, result)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(width=32)))
def test_the_quick_look_for_nan_finds_what_a_thorough_one_does(array: Array) -> None:
    assert all_finite(array) == bool(np.isfinite(array).all())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.binary(max_size=9))
def test_bytes_survive_and_torn_ones_are_noticed(elements: list[bytes], rest: bytes) -> None:
    packed = pack_bytes(elements)
    assert unpack_bytes(memoryview(packed), len(elements)) == elements
    if rest:
        assert isinstance(unpack_bytes(memoryview(packed + rest), len(elements)), int)


@pytest.mark.parametrize(
    ("version", "number"), [("1", "1"), ("007", "7"), ("1.2.0", "1002000"), ("1.2", "1002000"), ("2.0.13", "2000013")]
)
def test_version_numbers(version: str, number: str) -> None:
    assert protocol_version(version) == number


def test_other_versions_get_a_number_of_their_own() -> None:
    versions = ["2024-05-a", "1.2.3.4", "v3", "1.2.1000", "1" * 30, "01.2"]
    numbers = {protocol_version(version) for version in versions}
    assert len(numbers) == len(versions)
    assert all(number.isdigit() for number in numbers)


@given(st.lists(st.tuples(*[st.integers(0, 999)] * 3), min_size=2, max_size=2))
def test_the_number_of_a_newer_version_is_larger(parts: list[tuple[int, int, int]]) -> None:
    older, newer = sorted((".".join(map(str, each)) for each in parts), key=version_key)
    assert int(protocol_version(older)) <= int(protocol_version(newer))


@given(st.integers(0, 7), st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_a_tensor_behind_a_known_header_is_read_and_checked_like_the_first(padding: int, values: list[float]) -> None:
    """Wherever its bytes lie: the JSON in front of them has any length."""
    wanted = signature("m", [TensorInfo("x", (None, 3), "float32")], [TensorInfo("y", (1,), "float32")], "x")
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    header = {"inputs": [entry], "parameters": {"binary_data_output": True, "priority": 2, "pad": "." * padding}}
    sent = np.array([values], np.float32)
    first = read_request(*body(header, np.ones(3, np.float32).tobytes()), wanted)
    second = read_request(*body(header, sent.tobytes()), wanted)
    assert isinstance(first, InferRequest) and isinstance(second, PlainRequest)
    plain = second.plain
    assert (plain.batch, plain.priority, plain.stream, plain.outputs) == (1, 2, "", first.outputs)
    if np.isfinite(sent).all():
        found = plain.array(second.binary)
        assert np.array_equal(found, sent) and found.dtype == np.float32 and found.flags.aligned
    else:
        with pytest.raises(RequestError, match="NaN or infinity"):
            plain.array(second.binary)


def test_a_header_that_came_before_means_the_same_with_other_data() -> None:
    """Equal headers are not read twice, the tensors behind them are; another length is another request."""
    wanted = signature("m", [TensorInfo("a", (2,), "uint8"), TensorInfo("b", (1,), "uint8")], [])
    entries = [
        {"name": name, "shape": [size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
        for name, size in (("b", 1), ("a", 2))
    ]
    header = {"inputs": entries, "parameters": {"priority": 2, "timeout": 7, "stream": "s", "timings": True}}
    first = read_request(*body(header, b"\x01\x02\x03"), wanted)
    second = read_request(*body(header, b"\x04\x05\x06"), wanted)
    assert len(wanted.remembered) == 1
    assert (second.priority, second.timeout_s, second.stream, second.timings) == (2, 7e-6, "s", True)
    for request, expected in ((first, [1, 2, 3]), (second, [4, 5, 6])):
        arrays = request.feeds().arrays
        assert [*arrays["b"], *arrays["a"]] == expected
    with pytest.raises(RequestError, match="expecting 1 additional"):
        read_request(*body(header, b"\x04\x05"), wanted)
    for number in range(200):
        read_request(*body(header | {"own": number}, bytes(3)), wanted)
    assert len(wanted.remembered) <= 64
