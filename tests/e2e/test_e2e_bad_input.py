"""Hostile bytes at every door of running daemons: each a clear error, and nobody harmed.

After every test the same processes are there with the same ids, and an honest client is answered.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.support.hostile import JPEG, PNG, bomb, device_api, error_of, exchanged, hard_sample, start, unharmed
from tests.support.stage import Plant, Template, raw_exchange

INSPECT = "/v1/services/solder/inspect"
INFER = "/v2/models/small/infer"
MAX_GROWTH = 60 << 20
"""Bytes of resident memory that no process may gain over the lot."""


@pytest.fixture(scope="module")
def plant(template: Template) -> Iterator[Plant]:
    with Plant(template) as plant:
        start(plant)
        yield plant


@pytest.fixture(autouse=True)
def nobody_is_harmed(plant: Plant) -> Iterator[None]:
    with unharmed(plant):
        yield


# --- pictures ----------------------------------------------------------------------------------------------------

PICTURES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "a PNG cut in half": (lambda: PNG[: len(PNG) // 2], 400, "cut short"),
    "a PNG cut in its header": (lambda: PNG[:20], 400, "cut short"),
    "a JPEG cut in half": (lambda: JPEG[: len(JPEG) // 2], 400, "cut short"),
    "a JPEG without its end": (lambda: JPEG[:-2], 400, "cut short"),
    "a PNG with wrong pixels": (lambda: PNG[:60] + bytes(40) + PNG[100:], 400, "PNG"),
    "text": (lambda: b"hello " * 100, 400, "not a JPEG or PNG"),
    "another format": (lambda: b"GIF89a" + bytes(100), 400, "not a JPEG or PNG"),
    "nothing": (lambda: b"", 400, "no body"),
    "a bomb": (bomb, 400, "30000x30000 pixels exceed"),
    "17 MiB": (lambda: bytes(17 << 20), 413, "exceeds 16777216 bytes"),
}


@pytest.mark.parametrize("what", PICTURES)
def test_a_picture_that_is_none_is_refused_with_the_reason(plant: Plant, what: str) -> None:
    make, status, words = PICTURES[what]
    body = make()
    found, reply = plant.edge.request("POST", INSPECT, body, {"Content-Type": "image/png"})
    assert found == status and words in error_of(found, reply), reply


def test_the_bomb_is_small_and_true() -> None:
    assert 90_000 < len(bomb()) < 150_000


@pytest.mark.parametrize("what", ["text", "a PNG cut in half", "a bomb"])
def test_edged_inspect_says_it_in_one_sentence(plant: Plant, tmp_path: Path, what: str) -> None:
    make, _, words = PICTURES[what]
    file = tmp_path / "board.png"
    file.write_bytes(make())
    done = plant.edge.command("inspect", "solder", str(file))
    assert done.returncode == 1 and words in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


# --- requests ----------------------------------------------------------------------------------------------------


def tensor(**changes: Any) -> bytes:
    one = {"name": "input", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [0.5] * 768}
    return json.dumps({"inputs": [{**one, **changes}]}).encode()


def binary(values: bytes, length: int | str | None = None) -> tuple[bytes, dict[str, str]]:
    parameters = {"binary_data_size": 3072}
    one = {"name": "input", "shape": [1, 3, 16, 16], "datatype": "FP32", "parameters": parameters}
    head = json.dumps({"inputs": [one]}).encode()
    return head + values, {"Inference-Header-Content-Length": str(len(head) if length is None else length)}


REQUESTS: dict[str, tuple[str, str, bytes, dict[str, str], int, str]] = {
    "unknown service": ("POST", "/v1/services/nosuch/inspect", PNG, {}, 404, "known services: every, solder"),
    "unknown model": ("POST", "/v2/models/nosuch/infer", tensor(), {}, 404, "known models: small@1"),
    "unknown version": ("POST", "/v2/models/small/versions/9/infer", tensor(), {}, 404, "version 9"),
    "unknown path": ("GET", "/../../etc/passwd", b"", {}, 404, "Not Found"),
    "wrong method": ("GET", INSPECT, b"", {}, 405, "Method Not Allowed"),
    "a form": ("POST", INSPECT, PNG, {"Content-Type": "multipart/form-data; boundary=x"}, 415, "without a form"),
    "a foreign page": ("POST", INSPECT, PNG, {"Origin": "http://evil.example"}, 403, "another origin"),
    "a lie about compression": ("POST", INSPECT, PNG, {"Content-Encoding": "gzip"}, 400, "cannot be read"),
    "wrong deadline": ("POST", f"{INSPECT}?deadline_ms=nan", PNG, {}, 400, "deadline_ms"),
    "wrong shape": ("POST", INFER, tensor(shape=[1, 3, 8, 8]), {}, 400, "Expected [1,3,16,16], got [1,3,8,8]"),
    "wrong rank": ("POST", INFER, tensor(shape=[768]), {}, 400, "unexpected shape"),
    "negative shape": ("POST", INFER, tensor(shape=[-1, 3, 16, 16]), {}, 400, "not usable"),
    "huge shape": ("POST", INFER, tensor(shape=[1 << 40, 3, 16, 16]), {}, 400, "input 'input'"),
    "too few numbers": ("POST", INFER, tensor(data=[0.5] * 3), {}, 400, "does not match true shape"),
    "wrong type": ("POST", INFER, tensor(datatype="INT64"), {}, 400, "expects 'FP32'"),
    "wrong name": ("POST", INFER, tensor(name="x"), {}, 400, "unexpected inference input"),
    "NaN as JSON": ("POST", INFER, tensor(data=[float("nan")] * 768), {}, 400, "JSON is malformed"),
    "NaN as bytes": ("POST", INFER, *binary(struct.pack("<f", float("nan")) * 768), 400, "NaN or infinity"),
    "infinity as bytes": ("POST", INFER, *binary(struct.pack("<f", float("inf")) * 768), 400, "NaN or infinity"),
    "too few bytes": ("POST", INFER, *binary(bytes(100)), 400, "unexpected size"),
    "a lie about the header": ("POST", INFER, *binary(bytes(3072), 10**9), 400, "header size"),
    "a negative header": ("POST", INFER, *binary(bytes(3072), "-5"), 400, "must be a number"),
    "truncated JSON": ("POST", INFER, tensor()[:-9], {}, 400, "JSON"),
    "deep JSON": ("POST", INFER, b"[" * 500_000, {}, 400, "JSON"),
    "deep JSON in a field": ("POST", INFER, b'{"inputs":' + b"[" * 500_000, {}, 400, "JSON"),
    "not JSON": ("POST", INFER, b"\xff\xfe\x00", {}, 400, "JSON"),
    "no inputs": ("POST", INFER, b'{"inputs":[]}', {}, 400, "expected 1 inputs"),
    "17 MiB of tensor": ("POST", INFER, bytes(17 << 20), {}, 413, "exceeds 16777216 bytes"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_that_makes_no_sense_is_refused_with_the_reason(plant: Plant, what: str) -> None:
    method, path, body, headers, status, words = REQUESTS[what]
    found, reply = plant.edge.request(method, path, body or None, headers)
    assert found == status and words in error_of(found, reply), reply


_POST = f"POST {INSPECT} HTTP/1.1\r\nHost: x\r\n".encode()
MALFORMED = {
    "garbage": b"GARBAGE\r\n\r\n",
    "zeros": bytes(1000) + b"\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + b"\r\n\r\n",
    "another version": b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n",
    "a long header": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
    "a header without a name": b"GET /v2 HTTP/1.1\r\n: x\r\n\r\n",
    "a split header": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    "a negative length": _POST + b"Content-Length: -1\r\n\r\n" + PNG,
    "two lengths": _POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + PNG,
    "length and chunks": _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a broken chunk": _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "more than announced": _POST + b"Content-Length: 10\r\n\r\n" + PNG,
    "32 MiB in chunks": _POST + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * (b"1000000\r\n" + bytes(1 << 24) + b"\r\n"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_bytes_that_are_not_http_are_answered_in_json_and_the_connection_ends(plant: Plant, what: str) -> None:
    reply = raw_exchange(plant.edge.status().addresses.inference, MALFORMED[what])
    replies = re.split(rb"HTTP/1\.[01] (?=\d{3} )", reply)[1:]
    assert replies, reply
    for one in replies:
        head, _, body = one.partition(b"\r\n\r\n")
        assert 400 <= int(head[:3]) < 500, one
        assert b"application/json" in head
        assert not error_of(int(head[:3]), body).endswith(":")


def test_less_than_announced_costs_nobody_anything(plant: Plant) -> None:
    """The client promises 100,000 bytes, sends a picture and hangs up."""
    request = _POST + b"Content-Length: 100000\r\n\r\n" + PNG
    assert raw_exchange(plant.edge.status().addresses.inference, request, hang_up=True) == b""


@pytest.mark.parametrize("what", ["garbage", "zeros", "another version", "a long header", "two lengths"])
def test_the_page_and_the_dashboard_survive_them_too(plant: Plant, what: str) -> None:
    for address in (plant.edge.status().addresses.page, urlsplit(plant.cloud.dashboard_url).netloc):
        reply = raw_exchange(address, MALFORMED[what])
        assert b" 40" in reply[:12], reply[:200]


def test_the_local_api_refuses_garbage(plant: Plant) -> None:
    for path, body in (("/join", b"{"), ("/models", b"[" * 50_000), ("/services", b"\xff"), ("/services", b"name = 1")):
        status, reply = over_unix(plant.edge.client.path, "POST", path, body)
        assert status == 400, reply
        error_of(status, reply)
    status, reply = over_unix(plant.edge.client.path, "POST", "/services", bytes(17 << 20))
    assert status == 413 and "bytes" in error_of(status, reply)
    status, reply = over_unix(plant.edge.client.path, "GET", "/nothing")
    assert status == 404
    error_of(status, reply)


def test_the_admin_api_refuses_garbage(plant: Plant) -> None:
    admin = plant.cloud.state_dir / "run" / "cloudd.sock"
    bodies = [("/models", b"{", 400), ("/invites", b"[" * 50_000, 400), ("/invites", b'{"ttl_s": 1e999}', 400)]
    bodies += [("/models", b'{"path": "relative"}', 400), ("/devices/x/desired", b'{"services": [1]}', 400)]
    bodies += [("/models", bytes(17 << 20), 413), ("/nothing", b"{}", 404)]
    for path, body, expected in bodies:
        status, reply = over_unix(admin, "POST", path, body)
        assert status == expected, (path, reply)
        error_of(status, reply)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def over_unix(path: Path, method: str, route: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = _Unix(path)
    try:
        return exchanged(connection, method, route, body)
    finally:
        connection.close()


# --- cloudd's device API ------------------------------------------------------------------------------------------


DEVICE_API: dict[str, tuple[str, Callable[[], bytes], bool, int, str]] = {
    "a sample of a stranger": ("/v1/answers", hard_sample, False, 401, "device certificate"),
    "an empty envelope": ("/v1/answers", lambda: b"", True, 400, "too few"),
    "no envelope": ("/v1/answers", lambda: b"garbage" * 100, True, 400, "announces a header"),
    "a cut envelope": ("/v1/answers", lambda: hard_sample()[:-5], True, 400, "announces"),
    "17 MiB": ("/v1/answers", lambda: bytes(17 << 20), True, 413, "larger than"),
    "text as a picture": ("/v1/answers", lambda: hard_sample(b"text"), True, 422, "not a JPEG or PNG"),
    "a cut picture": ("/v1/answers", lambda: hard_sample(PNG[:100]), True, 422, "cut short"),
    "wrong pixels": ("/v1/answers", lambda: hard_sample(PNG[:60] + bytes(40) + PNG[100:]), True, 422, "PNG"),
    "a bomb": ("/v1/answers", lambda: hard_sample(bomb()), True, 422, "30000x30000"),
    "unknown model": ("/v1/answers", lambda: hard_sample(answer_model="nosuch"), True, 404, "no model"),
    "no model name": ("/v1/answers", lambda: hard_sample(answer_model="../x"), True, 400, "no model name"),
    "a long id": ("/v1/answers", lambda: hard_sample(sample_id="x" * 9000), True, 400, "characters"),
    "truncated JSON": ("/v1/enroll", lambda: b"{", False, 400, "JSON"),
    "deep JSON": ("/v1/enroll", lambda: b"[" * 10_000, False, 400, "JSON"),
    "fields missing": ("/v1/enroll", lambda: b'{"protocol":1}', False, 400, "token_id"),
    "too much JSON": ("/v1/enroll", lambda: b"x" * 100_000, False, 413, "larger than"),
    "unknown path": ("/v1/blobs/../../cloudd.db", lambda: b"", True, 404, "nothing at"),
}


@pytest.mark.parametrize("what", DEVICE_API)
def test_cloudd_refuses_what_a_broken_device_may_send(plant: Plant, what: str) -> None:
    path, make, known, status, words = DEVICE_API[what]
    found, reply = device_api(plant, path, make(), known)
    assert found == status and words in error_of(found, reply), reply
    assert "bad-input" not in plant.arrived()


def test_cloudd_hangs_up_on_who_speaks_no_tls(plant: Plant) -> None:
    where = urlsplit(plant.cloud.url).netloc
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), MALFORMED["a TLS hello"]):
        assert b"HTTP" not in raw_exchange(where, data, hang_up=True)


# --- the lot ------------------------------------------------------------------------------------------------------


def test_all_of_it_twice_leaves_the_memory_as_it_was(plant: Plant) -> None:
    address = plant.edge.status().addresses.inference

    def lot() -> None:
        for make, *_ in PICTURES.values():
            plant.edge.request("POST", INSPECT, make())
        for method, path, body, headers, *_ in REQUESTS.values():
            plant.edge.request(method, path, body or None, headers)
        for data in MALFORMED.values():
            raw_exchange(address, data)
        for what in [what for what, (path, *_) in DEVICE_API.items() if path != "/v1/enroll"]:  # tries are counted
            test_cloudd_refuses_what_a_broken_device_may_send(plant, what)

    before = resident(plant)
    for _ in range(2):
        lot()
    for name, size in resident(plant).items():
        assert size - before[name] < MAX_GROWTH, f"{name} grew from {before[name] >> 20} to {size >> 20} MiB"


def resident(plant: Plant) -> dict[str, int]:
    processes = [*plant.processes(plant.edge), *plant.processes(plant.cloud)]
    return {f"{process.pid} {' '.join(process.cmdline()[2:5])}": memory(process) for process in processes}


def memory(process: psutil.Process) -> int:
    return int(process.memory_info().rss)
