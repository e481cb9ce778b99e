"""The uplink against a real TLS server and every fault: each ends in time and says what it means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from edged.collab.uplink import MAX_PICTURE, Exchange, Uplink, UplinkError
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
    assert cloud.pictures["S1"] == PICTURE
    assert [replace(one, left_ms=None) for one in cloud.received] == [header()]
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


# --- what others hear of a request --------------------------------------------------------------------------------


async def test_observers_hear_of_every_request_and_how_it_ended(cloud: FaultyCloud, uplink: Uplink) -> None:
    seen: list[Exchange] = []

    def broken(exchange: Exchange) -> None:
        raise RuntimeError("an observer's own fault")

    uplink.observers += [broken, seen.append]
    await uplink.check(5.0)
    await uplink.ask(header(), PICTURE, 5.0)
    cloud.mode = "busy 3"
    await fails(uplink)
    cloud.mode = "hang"
    await fails(uplink)
    assert [(one.outcome, one.small, one.reused) for one in seen] == [
        ("answered", True, False), ("answered", False, True), ("busy", False, True), ("timeout", False, True),
    ]  # fmt: skip
    assert seen[0].size == 0 and all(len(PICTURE) < one.size < len(PICTURE) + 1000 for one in seen[1:])
    assert [one.cloud_ms for one in seen] == [0.0, 1.0, 0.0, 0.0]
    assert 0 < seen[1].seconds < WAIT <= seen[3].seconds


async def test_a_request_that_is_called_off_says_nothing_about_the_link(cloud: FaultyCloud, uplink: Uplink) -> None:
    seen: list[Exchange] = []
    uplink.observers.append(seen.append)
    cloud.mode = "hang"
    task = asyncio.create_task(uplink.ask(header(), PICTURE, 5.0))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait([task])
    assert seen == []


async def test_what_leaves_says_how_long_its_sender_waits(cloud: FaultyCloud, uplink: Uplink) -> None:
    await uplink.ask(header(), PICTURE, 5.0)
    await uplink.ask(replace(header("S2"), left_ms=70.0, priority="alarm"), PICTURE, 5.0)
    await uplink.ask(replace(header("S3"), late=True, priority="alarm"), PICTURE, 5.0)
    await uplink.ask(replace(header("S4"), reason="audit", priority="alarm"), PICTURE, 5.0)
    said = [(one.priority, one.left_ms) for one in cloud.received]
    assert said == [("inline", 5000.0), ("alarm", 70.0), ("audit", None), ("audit", 5000.0)]


# --- one body at a time -------------------------------------------------------------------------------------------


class OneByOne:
    """Lets bodies go in the order of coming, and notes what happens."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.events: list[str] = []

    async def begin(self, header: HardSample, size: int) -> object:
        await self.lock.acquire()
        self.events.append(f"begin {header.sample_id}")
        return header.sample_id

    def sent(self, key: object, fresh: bool) -> None:
        self.events.append(f"sent {key}")
        self.lock.release()

    def end(self, key: object) -> None:
        self.events.append(f"end {key}")
        if f"sent {key}" not in self.events:
            self.lock.release()


async def test_a_body_waits_for_the_one_before_to_leave_and_not_for_its_answer(
    cloud: FaultyCloud, uplink: Uplink
) -> None:
    turns = uplink.turns = OneByOne()
    cloud.delay = 0.3
    began = time.monotonic()
    await asyncio.gather(*(uplink.ask(header(name), PICTURE, 5.0) for name in ("S1", "S2", "S3")))
    assert time.monotonic() - began < 0.8
    order = [event for event in turns.events if not event.startswith("end")]
    assert order == ["begin S1", "sent S1", "begin S2", "sent S2", "begin S3", "sent S3"]
    assert all(turns.events.index(f"sent {name}") < turns.events.index("end S1") for name in ("S1", "S2", "S3"))


async def test_a_body_has_left_only_when_the_other_host_has_acknowledged_it(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with Wire(cloud.port) as wire:
        uplink = Uplink(make_link(tmp_path, f"https://127.0.0.1:{wire.port}", cloud.authority))
        turns = uplink.turns = OneByOne()
        await uplink.check(5.0)
        wire.cut()
        with pytest.raises(UplinkError):
            await uplink.ask(header(), PICTURE * 100, 0.4)  # more than all buffers of this machine take
        assert turns.events == ["begin S1", "end S1"]
        await uplink.close()


async def test_a_body_whose_turn_does_not_come_in_time_is_a_timeout(uplink: Uplink) -> None:
    turns = uplink.turns = OneByOne()
    await turns.lock.acquire()
    error = await fails(uplink)
    assert error.kind == "timeout" and not error.sent and "not free" in str(error)
    assert turns.events == []


async def test_renewed_connections_are_fresh_ones(cloud: FaultyCloud, uplink: Uplink) -> None:
    seen: list[Exchange] = []
    uplink.observers.append(seen.append)
    await uplink.check(5.0)
    uplink.renew()
    await uplink.check(5.0)
    await uplink.check(5.0)
    assert [one.reused for one in seen] == [False, False, True]
