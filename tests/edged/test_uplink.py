"""The uplink against a real TLS server and every fault: each ends in time and says what it means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from edged.collab.uplink import MAX_PICTURE, Uplink, UplinkError
from edgekit.identity import Authority, fingerprint
from edgekit.messages import HardSample, Link, Verdict
from tests.edged.collab_cloud import FaultyCloud, Wire, black_hole, free_port, make_link, running, silent_listener

PICTURE = b"\xff\xd8" + bytes(50_000)
WAIT = 0.4


def header(sample_id: str = "S1") -> HardSample:
    verdict = Verdict(label="ok", score=0.6, margin=0.2, model="small@1")
    return HardSample(
        sample_id=sample_id, service="solder", answer_model="large", edge=verdict, reason="hard", captured_at=1.0
    )


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[FaultyCloud]:
    async with running(tmp_path / "cloud") as cloud:
        yield cloud


@pytest.fixture
async def uplink(tmp_path: Path, cloud: FaultyCloud) -> AsyncIterator[Uplink]:
    uplink = Uplink(make_link(tmp_path, cloud.url, cloud.authority))
    yield uplink
    await uplink.close()


async def fails(uplink: Uplink, within: float = WAIT + 0.3) -> UplinkError:
    """The error of one ask, which must come in time."""
    started = time.monotonic()
    with pytest.raises(UplinkError) as caught:
        await uplink.ask(header(), PICTURE, WAIT)
    assert time.monotonic() - started < within
    return caught.value


async def test_an_answer_comes_back_over_mutual_tls_and_bytes_are_counted(cloud: FaultyCloud, uplink: Uplink) -> None:
    answer = await uplink.ask(header(), PICTURE, 5.0)
    assert answer.verdict.label == "bad" and not answer.repeated
    assert cloud.pictures["S1"] == PICTURE and cloud.received == [header()]
    assert None not in cloud.devices
    assert len(PICTURE) < uplink.bytes < len(PICTURE) + 2000
    assert uplink.authority() == fingerprint(cloud.authority.certificate)
    assert (await uplink.ask(header(), PICTURE, 5.0)).repeated


async def test_one_connection_serves_many_asks(cloud: FaultyCloud, uplink: Uplink) -> None:
    for i in range(5):
        await uplink.ask(header(f"S{i}"), PICTURE, 5.0)
    assert uplink._line is not None
    connections = uplink._line.session.connector
    assert connections is not None and sum(len(kept) for kept in connections._conns.values()) == 1


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("hang", "timeout", "did not answer within 400 ms"),
        ("trickle", "timeout", "did not answer within"),
        ("rst before body", "down", "cannot be reached"),
        ("rst mid reply", "down", "cannot be reached"),
        ("garbage", "down", "cannot be read"),
        ("wrong sample", "down", "does not belong to this sample"),
        ("insane", "down", "is no answer"),
        ("oversized", "down", "exceeds"),
        ("redirect", "down", "status 307"),
        ("status 500", "down", "problem 500"),
        ("status 401", "refused", "problem 401"),
        ("status 403", "refused", "problem 403"),
        ("status 404", "rejected", "problem 404"),
        ("status 422", "rejected", "problem 422"),
    ],
)
async def test_faults_of_the_server(cloud: FaultyCloud, uplink: Uplink, mode: str, kind: str, words: str) -> None:
    cloud.mode = mode
    error = await fails(uplink)
    assert error.kind == kind and words in error.text and error.sent
    cloud.mode = "answer"
    assert (await uplink.ask(header(), PICTURE, 5.0)).verdict.label == "bad", "the next ask works"


@pytest.mark.parametrize(("asked", "rest"), [("7", 7.0), ("999999", 300.0), ("-5", 1.0), ("soon", 1.0), ("nan", 1.0)])
async def test_busy_says_how_long_to_rest(cloud: FaultyCloud, uplink: Uplink, asked: str, rest: float) -> None:
    cloud.mode = f"busy {asked}"
    error = await fails(uplink)
    assert (error.kind, error.status, error.retry_after_s) == ("busy", 503, rest)


async def test_faults_of_the_network(tmp_path: Path, cloud: FaultyCloud) -> None:
    link = make_link(tmp_path, cloud.url, cloud.authority)

    async def kind(port: int) -> tuple[str, bool]:
        uplink = Uplink(msgspec.structs.replace(link, url=f"https://127.0.0.1:{port}"))
        error = await fails(uplink)
        await uplink.close()
        return error.kind, error.sent

    assert await kind(free_port()) == ("down", False)
    with silent_listener() as port:
        assert await kind(port) == ("timeout", False)
    with black_hole() as port:
        assert await kind(port) == ("timeout", False)


async def test_a_half_open_connection_times_out_and_the_next_ask_makes_a_new_one(
    tmp_path: Path, cloud: FaultyCloud
) -> None:
    async with Wire(cloud.port) as wire:
        uplink = Uplink(make_link(tmp_path, f"https://127.0.0.1:{wire.port}", cloud.authority))
        await uplink.ask(header("S1"), PICTURE, 5.0)
        wire.cut()
        assert (await fails(uplink)).kind == "timeout"
        wire.mend()
        await uplink.ask(header("S2"), PICTURE, 5.0)
        await uplink.close()


async def test_a_kept_connection_that_a_restarted_cloud_closed_is_no_failure(
    cloud: FaultyCloud, uplink: Uplink
) -> None:
    await uplink.ask(header("S1"), PICTURE, 5.0)
    await cloud.stop()
    await cloud.start()
    await uplink.ask(header("S2"), PICTURE, 5.0)
    assert [sample.sample_id for sample in cloud.received] == ["S1", "S2"]


async def test_a_server_of_another_authority_gets_nothing(tmp_path: Path, cloud: FaultyCloud) -> None:
    stranger = Authority.create("stranger", time.time())
    uplink = Uplink(make_link(tmp_path, cloud.url, stranger))
    error = await fails(uplink)
    assert (error.kind, error.sent) == ("down", False) and cloud.requests == 0
    await uplink.close()


async def test_an_enrolled_device_cannot_pose_as_the_cloud(tmp_path: Path, cloud: FaultyCloud) -> None:
    impostor = make_link(tmp_path / "other", "", cloud.authority)
    for name in ("key.pem", "cert.pem"):
        source = Path(impostor.identity) / name.replace("cert.", "certificate.")
        (cloud.root / name).write_bytes(source.read_bytes())
    await cloud.stop()
    await cloud.start()
    uplink = Uplink(make_link(tmp_path, cloud.url, cloud.authority))
    error = await fails(uplink)
    assert (error.kind, error.sent) == ("down", False) and cloud.requests == 0
    await uplink.close()


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (Link(), "has not joined"),
        (Link(url="https://127.0.0.1:1", identity="/nowhere"), "identity cannot be read"),
        (Link(url="http://127.0.0.1:1", identity="/nowhere"), "must begin with https"),
    ],
)
async def test_without_a_usable_link_nothing_is_tried(link: Link, words: str) -> None:
    uplink = Uplink(link)
    with pytest.raises(UplinkError, match=words):
        uplink.authority()
    error = await fails(uplink)
    assert (error.kind, error.sent) == ("down", False)
    await uplink.close()


async def test_an_oversized_picture_is_rejected_before_it_leaves(cloud: FaultyCloud, uplink: Uplink) -> None:
    with pytest.raises(UplinkError) as caught:
        await uplink.ask(header(), bytes(MAX_PICTURE + 1), 5.0)
    assert (caught.value.kind, caught.value.status, cloud.requests) == ("rejected", 413, 0)


async def test_a_new_certificate_takes_over_while_an_old_request_ends_in_peace(
    tmp_path: Path, cloud: FaultyCloud, uplink: Uplink
) -> None:
    cloud.delay = 0.3
    old = asyncio.create_task(uplink.ask(header("S1"), PICTURE, 5.0))
    await asyncio.sleep(0.1)
    old_line = uplink._line
    assert old_line is not None
    uplink.set_link(make_link(tmp_path, cloud.url, cloud.authority, generation=1))
    await uplink.ask(header("S2"), PICTURE, 5.0)
    assert (await old).sample_id == "S1"
    await asyncio.sleep(0.05)
    assert old_line.session.closed and uplink._line is not old_line
    uplink.set_link(msgspec.structs.replace(uplink.link, up=False))
    assert uplink._line is not None, "a hint alone does not drop the connection"
