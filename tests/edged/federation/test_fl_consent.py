"""A device whose table says `ask`, and a site that leaves: what people say, by command, by API and on the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from edged.api import ApiError
from edged.federation import consent
from edged.federation.around import Around
from edged.federation.desk import FederationDesk
from edged.federation.front import Subject
from edged.federation.machine import read_health
from edged.federation.notes import JobNote, JobView
from edged.federation.settings import Federation
from edged.status.federation_page import federation_card
from edged.status.state import StatusState
from edgekit.messages import Link
from edgekit.messages.federation import JobNotice

JOB = "ab" * 16
NOTICE = JobNotice(id=JOB, service="solder", model="small@1", secure=True, rounds=1, version=0, head=True)


class Linked:
    identity = object()
    device_id = "device"
    link = Link(url="https://x", up=True, identity="x")


def around(root: Path, **changes: object) -> Around:
    async def labelled(name: str) -> int:
        return 0

    return Around(
        state_dir=root,
        empty=root,
        policy=msgspec.structs.replace(Federation(enabled=True, plain=True), **changes),
        link=Linked(),  # type: ignore[arg-type]
        subject=lambda name: Subject("", "small@1", root),
        labelled=labelled,
        forget=None,  # type: ignore[arg-type]
        learning=None,  # type: ignore[arg-type]
        report=lambda code, level, text: None,
        health=lambda: "warning",
    )


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[FederationDesk]:
    """A desk that has heard of one job, and asks."""
    desk = FederationDesk(around(tmp_path, ask=True))
    desk.open()
    desk._listed = {JOB: NOTICE}
    yield desk
    await desk.close()


async def test_a_job_waits_until_somebody_agrees_and_then_for_what_the_policy_wants(asking: FederationDesk) -> None:
    assert await asking._choose() is None
    (view,) = asking.jobs()
    assert view.waits and "somebody has to agree first: edged fl agree abababababab" in view.why
    done = await asking.agree("ABAB")
    assert "takes part in the job abababababab" in done.text
    assert await asking._choose() is None
    (view,) = asking.jobs()
    assert not view.waits and "0 samples have a label" in view.why


async def test_who_agreed_may_still_refuse_for_ever_and_then_nobody_can_agree(asking: FederationDesk) -> None:
    await asking.agree(JOB)
    await asking.refuse(JOB, "not with our parts")
    (view,) = asking.jobs()
    assert view.note.stage == "refused" and not view.waits
    with pytest.raises(ApiError, match="out of the job"):
        await asking.agree(JOB)
    with pytest.raises(ApiError, match="0 jobs begin with 'ffff'"):
        await asking.agree("ffff")


async def test_a_device_that_asks_nobody_says_so(tmp_path: Path) -> None:
    desk = FederationDesk(around(tmp_path))
    desk.open()
    desk._listed = {JOB: NOTICE}
    with pytest.raises(ApiError, match="ask is false"):
        await desk.agree(JOB)
    assert not desk.jobs()[0].waits
    await desk.close()


async def test_a_site_that_leaves_needs_no_labels_for_it_and_can_think_better_of_it(tmp_path: Path) -> None:
    desk = FederationDesk(around(tmp_path))
    desk.open()
    desk._listed = {JOB: NOTICE}
    assert await desk._choose() is None and "0 samples" in desk.jobs()[0].why
    with pytest.raises(ApiError, match="knows no federated job of a service 'paint'"):
        await desk.leave("paint", "", False)
    with pytest.raises(ApiError, match="nobody wanted"):
        await desk.leave("solder", "", True)
    assert "takes its sums out" in (await desk.leave("solder", "we go", False)).text
    assert (await desk._choose() or ("",))[0] == JOB
    assert "again" in (await desk.leave("solder", "", True)).text
    assert await desk._choose() is None
    await desk.close()


async def test_the_child_is_told_how_the_device_is(tmp_path: Path) -> None:
    desk = FederationDesk(around(tmp_path))
    desk.open()
    await asyncio.to_thread(desk._alarms.tell, desk._folder, desk._around.health())
    assert read_health(desk._folder) == "warning"
    await desk.close()


def test_the_page_has_buttons_for_who_is_logged_in() -> None:
    note = JobNote(job=JOB, service="solder", model="small@1", secure=True, private=False, rounds=1)
    views = [JobView(note=note, listed=True, waits=True)]
    state = StatusState(name="x", device_id="d", version="1", state_dir="/", started_at=0.0, now=0.0, federation=views)
    assert "<form" not in federation_card(state)
    card = federation_card(state, logged_in=True)
    assert f"/api/federation/{JOB}/agree" in card and f"/api/federation/{JOB}/refuse" in card
    over = msgspec.structs.replace(state, federation=[JobView(note=msgspec.structs.replace(note, stage="done"))])
    assert "<form" not in federation_card(over, logged_in=True)
    assert consent.named("abab", [JOB]) == JOB
