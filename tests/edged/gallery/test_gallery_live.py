"""The worker's galleries: what is enrolled counts at once, here and in other processes, and trouble stops nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.gallery.live import Galleries
from edged.gallery.records import GalleryError, Taken
from edged.gallery.store import GalleryStore, path_in
from edgekit.packages import EmbeddingSpec
from edgekit.services.definition import Gallery as Rules
from edgekit.vision.embedding import UNKNOWN
from tests.edged.gallery.test_gallery_view import WIDTH, vector

SPEC, MODEL = EmbeddingSpec(width=WIDTH), "faces@1 abc"


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, level: str, code: str, text: str) -> None:
        self.events.append((level, code))


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Galleries]:
    live = galleries(tmp_path)
    yield live
    await live.close()


def galleries(state: Path, heard: Any = None, rules: Rules | None = None) -> Galleries:
    made = Galleries(state, "device-1", heard or Heard(), wall=lambda: 1000.0)
    made.add("door", MODEL, SPEC, rules or Rules(threshold=0.8))
    return made


async def test_whoever_is_enrolled_is_known_when_the_reply_is_there(live: Galleries) -> None:
    await live.follow()
    assert live.recognise("door", vector(1, 5)).label == UNKNOWN
    reply = await live.enrol("door", "Anna", vector(1), "me")
    assert (reply.identity, reply.pictures, reply.new) == ("Anna", 1, True)
    assert live.recognise("door", vector(1, 5)).label == "Anna"
    assert live.recognise("door", vector(2, 5)).label == UNKNOWN
    assert live.sentence("door").startswith("1 identity by 1 picture. The threshold 0.8")


async def test_the_same_picture_is_enrolled_once(live: Galleries) -> None:
    await live.enrol("door", "Anna", vector(1), "me")
    again = await live.enrol("door", "Anna", vector(1), "me")
    assert (again.pictures, again.new) == (1, False)


async def test_a_picture_of_somebody_else_is_refused_unless_it_is_forced(live: Galleries) -> None:
    await live.enrol("door", "Anna", vector(1), "me")
    for name in ("Bert", ""):
        with pytest.raises(Taken, match=r"looks like Anna \(0.9"):
            await live.enrol("door", name, vector(1, 3), "me")
    reply = await live.enrol("door", "Bert", vector(1, 3), "me", force=True)
    assert reply.new


async def test_without_a_trusted_threshold_nobody_is_refused(tmp_path: Path) -> None:
    live = galleries(tmp_path, rules=Rules())
    await live.enrol("door", "Anna", vector(1), "me")
    assert (await live.enrol("door", "Bert", vector(1, 3), "me")).new
    await live.close()


async def test_nobody_gets_a_reserved_name(live: Galleries) -> None:
    with pytest.raises(GalleryError, match="rules use this word"):
        await live.enrol("door", "unknown", vector(1), "me")


async def test_a_successor_knows_them_and_each_follows_the_other(tmp_path: Path) -> None:
    first, second = galleries(tmp_path), galleries(tmp_path)
    await first.enrol("door", "Anna", vector(1), "me")
    await second.follow()
    assert second.recognise("door", vector(1, 5)).label == "Anna"
    running = asyncio.create_task(first.run())
    await second.enrol("door", "Bert", vector(2), "me")
    for _ in range(60):
        if first.recognise("door", vector(2, 5)).label == "Bert":
            break
        await asyncio.sleep(0.05)
    assert first.recognise("door", vector(2, 5)).label == "Bert"
    running.cancel()
    store = GalleryStore.open(tmp_path, "device-1")
    rows, _ = store.all("door")
    store.remove("door", [id for id, row in rows.items() if row.identity == "Anna"])
    store.close()
    await first.follow()
    assert first.recognise("door", vector(1, 5)).label == UNKNOWN
    await first.close()
    await second.close()


async def test_another_model_knows_nobody_until_they_are_enrolled_anew(tmp_path: Path) -> None:
    live = galleries(tmp_path)
    await live.enrol("door", "Anna", vector(1), "me")
    await live.close()
    newer = Galleries(tmp_path, "device-1", Heard(), wall=lambda: 1000.0)
    newer.add("door", "faces@2 def", SPEC, Rules(threshold=0.8))
    await newer.follow()
    assert newer.recognise("door", vector(1)).label == UNKNOWN
    assert "Enrolled with another model, to be enrolled anew: 1 picture." in newer.sentence("door")
    await newer.enrol("door", "Anna", vector(1), "me")
    assert newer.recognise("door", vector(1)).label == "Anna"
    await newer.close()


async def test_a_disk_that_fails_is_said_once_and_whoever_was_known_stays_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    live = galleries(tmp_path, heard)
    await live.enrol("door", "Anna", vector(1), "me")

    def broken(self: GalleryStore) -> int:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(GalleryStore, "version", broken)
        await live.follow()
        await live.follow()
    assert live.recognise("door", vector(1, 5)).label == "Anna"
    await live.follow()
    assert heard.events == [("error", "gallery.unusable"), ("ok", "gallery.unusable")]
    await live.close()


async def test_a_damaged_file_is_said_and_the_service_goes_on(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, but long enough to be read as one" * 40)
    heard = Heard()
    live = galleries(tmp_path, heard)
    await live.follow()
    assert ("error", "gallery.quarantined") in heard.events
    assert live.recognise("door", vector(1)).label == UNKNOWN
    await live.enrol("door", "Anna", np.asarray(vector(1)), "me")
    assert live.recognise("door", vector(1)).label == "Anna"
    await live.close()


async def test_calibrating_takes_a_small_share_of_the_time_and_is_made_up_for(tmp_path: Path) -> None:
    """The clock goes on by a second whenever it is looked at: so each calibration takes one."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    live = Galleries(tmp_path, "device-1", Heard(), wall=lambda: 1000.0, clock=clock)
    live.add("door", MODEL, SPEC, Rules())
    for identity in range(4):
        await live.enrol("door", f"p{identity}", vector(identity), "me")
    assert live.sentence("door").startswith("4 identities") and "2 comparisons" in live.sentence("door")
    assert live.recognise("door", vector(3, 5)).label == "p3", "it counts all the same"
    now[0] += 100.0
    await live.follow()
    assert "4 comparisons" in live.sentence("door")
    await live.close()
