"""The supervisor's loops: one that fails is shown and starts again, and none of them outlives `stop`."""

from __future__ import annotations

import asyncio

from edged.health import Health
from edged.loops import Loops


async def test_a_loop_that_fails_is_shown_and_starts_again() -> None:
    health, starts, going = Health(), 0, asyncio.Event()

    async def fails_once() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise ValueError("no such thing")
        going.set()
        await asyncio.Event().wait()

    loops = Loops(health, restart_s=0.0)
    loops.start({"runner": fails_once})
    await asyncio.wait_for(going.wait(), 5.0)
    (item,) = health.items()
    assert item.code == "internal.runner" and item.severity == "error"
    assert item.text.startswith("The runner met an unexpected error and was started again: ValueError: no such thing.")
    await loops.stop()


async def test_one_that_fails_leaves_the_others_alone_and_all_end_at_the_stop() -> None:
    ended: list[str] = []
    going = asyncio.Event()

    async def fails() -> None:
        raise OSError("the disk is full")

    async def works() -> None:
        going.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("works")

    loops = Loops(Health(), restart_s=60.0)
    loops.start({"fetcher": fails, "follower": works})
    await asyncio.wait_for(going.wait(), 5.0)
    assert not ended
    await asyncio.wait_for(loops.stop(), 5.0)
    assert ended == ["works"]
