"""Rows and blobs on real SQLite files and real directories."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from cloudd.answers.store import AnswerStore
from cloudd.storage import Blobs, Rows, StorageError, migrate, references, schema
from cloudd.storage import blobs as blobs_module
from cloudd.storage import rows as rows_module
from cloudd.storage.rows import sqlite_url


@pytest.fixture
async def rows(tmp_path: Path) -> AsyncIterator[Rows]:
    opened = await Rows.open(sqlite_url(tmp_path / "deep" / "cloudd.db"))
    yield opened
    await opened.close()


@pytest.fixture
async def blobs(tmp_path: Path) -> Blobs:
    return await Blobs.open(str(tmp_path / "blobs"))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def model_row(name: str = "m") -> dict[str, object]:
    return {"name": name, "version": "1", "digest": "d", "task": "t", "description": "", "added_at": 0.0}


async def test_migrations_lead_exactly_to_the_schema(rows: Rows) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, schema.metadata))

    async with rows.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_answers_of_a_release_before_mosaics_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "cloudd.db"
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    engine = create_engine(f"sqlite:///{path}")
    verdict = '{"label":"dark","score":0.6,"margin":0.2,"model":"m@1"}'
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO answers (device_id, sample_id, service, serial, reason, late, captured_at, answered_at, "
                "compute_ms, edge, cloud, agrees, picture, thumbnail, bytes) "
                "VALUES ('D', 's1', 'x', '', 'hard', 0, 1, 2, 3, :verdict, :verdict, 1, NULL, NULL, 0)"
            ),
            {"verdict": verdict},
        )
    engine.dispose()
    rows = await Rows.open(sqlite_url(path))
    store = AnswerStore(rows, await Blobs.open(str(tmp_path / "blobs")))
    (kept,) = await store.recent(10)
    assert (kept.sample_id, kept.agrees, kept.regions, kept.differing) == ("s1", True, 0, [])
    assert await store.mosaic(kept.id) == (None, None)
    repeated = await store.find("D", "s1")
    assert repeated is not None and repeated.mosaic is None
    await rows.close()


async def test_the_file_is_private_and_every_commit_is_synced(rows: Rows, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "deep" / "cloudd.db").stat().st_mode) == 0o600
    async with rows.reading() as connection:
        pragmas = [
            await connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]


async def test_opening_again_changes_nothing_and_says_what_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cloudd.storage")
    url = sqlite_url(tmp_path / "cloudd.db")
    first = await Rows.open(url)
    assert "migration 1 of" in caplog.text
    async with first.writing() as connection:
        await connection.execute(insert(schema.models).values(model_row()))
    await first.close()
    caplog.clear()
    second = await Rows.open(url)
    assert "migration" not in caplog.text
    async with second.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(schema.models)) == 1
    await second.close()


async def test_a_database_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "cloudd.db")
    rows = await Rows.open(url)
    async with rows.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await rows.close()
    with pytest.raises(StorageError, match="written by a newer cloudd"):
        await Rows.open(url)


async def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cloudd.db"
    path.write_bytes(b"this is not a database " * 100)
    with pytest.raises(StorageError, match="not a database"):
        await Rows.open(sqlite_url(path))
    assert path.read_bytes().startswith(b"this is not")


@pytest.mark.parametrize("url", ["nonsense", "sqlite:///x.db", "oracle://user:secret@host/db", "what+ever://x"])
async def test_a_wrong_url_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        await Rows.open(url)
    assert "secret" not in str(caught.value)


async def test_an_error_rolls_the_whole_transaction_back(rows: Rows) -> None:
    with pytest.raises(IntegrityError):
        async with rows.writing() as connection:
            await connection.execute(insert(schema.models).values(model_row("kept?")))
            await connection.execute(
                insert(schema.model_files).values(name="absent", version="1", path="p", sha256="s", size=1)
            )
    async with rows.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(schema.models)) == 0


async def test_a_task_cancelled_in_a_transaction_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_BUSY_MS", 200)
    rows = await Rows.open(sqlite_url(tmp_path / "cloudd.db"))

    async def write() -> None:
        async with rows.writing() as connection:
            await connection.scalar(select(func.count()).select_from(schema.audit))
            await connection.execute(insert(schema.audit).values(at=0.0, action="a", subject="s"))

    gc.disable()  # a garbage collection would free what a cancelled task left behind, by luck
    try:
        for number in range(200):
            task = asyncio.create_task(write())
            await asyncio.sleep(number % 40 * 0.0002)
            task.cancel()
            if number % 3 == 0:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})
            await write()
    finally:
        gc.enable()
        await rows.close()


async def test_a_reader_sees_a_snapshot_while_a_writer_commits(rows: Rows) -> None:
    count = select(func.count()).select_from(schema.models)
    async with rows.reading() as reader:
        assert await reader.scalar(count) == 0
        async with rows.writing() as writer:
            await writer.execute(insert(schema.models).values(model_row()))
        assert await reader.scalar(count) == 0
    async with rows.reading() as reader:
        assert await reader.scalar(count) == 1


async def test_read_modify_write_by_many_loses_no_update(rows: Rows) -> None:
    async with rows.writing() as connection:
        await connection.execute(insert(schema.models).values(model_row()))

    async def raise_by_one() -> None:
        async with rows.writing() as connection:
            present = await connection.scalar(select(schema.models.c.added_at))
            await connection.execute(update(schema.models).values(added_at=present + 1))

    await asyncio.gather(*(raise_by_one() for _ in range(30)))
    async with rows.reading() as connection:
        assert await connection.scalar(select(schema.models.c.added_at)) == 30


@pytest.mark.parametrize("kind", ["directory", "memory"])
async def test_blobs_come_back_whole_in_ranges_and_in_streams(tmp_path: Path, kind: str) -> None:
    blobs = await Blobs.open(str(tmp_path / "b") if kind == "directory" else "memory:///")
    data = bytes(range(256)) * 20_000
    name = await blobs.put(data)
    assert name == hashlib.sha256(data).hexdigest()
    assert await blobs.put(data) == name
    assert await blobs.get(name) == data
    assert await blobs.size(name) == len(data)
    assert await blobs.exists(name)
    assert b"".join([c async for c in blobs.stream(name)]) == data
    assert b"".join([c async for c in blobs.stream(name, 1000, 1_500_000)]) == data[1000:1_500_000]
    assert [c async for c in blobs.stream(name, 5, 5)] == []
    assert [n async for n in blobs.list()] == [name]
    empty = await blobs.put(b"")
    assert await blobs.get(empty) == b""
    assert [c async for c in blobs.stream(empty)] == []


async def test_a_stream_is_stored_under_its_hash_or_not_at_all(blobs: Blobs, tmp_path: Path) -> None:
    parts = [b"x" * 3_000_000, b"y" * 3_000_000]
    expected = hashlib.sha256(b"".join(parts)).hexdigest()
    with pytest.raises(ValueError, match="SHA-256"):
        await blobs.put_stream(chunks(*parts), expected="0" * 64)

    async def broken() -> AsyncIterator[bytes]:
        yield parts[0]
        raise RuntimeError("the sender went away")

    with pytest.raises(Exception, match="went away"):
        await blobs.put_stream(broken())
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
    assert await blobs.put_stream(chunks(*parts), expected=expected) == (expected, 6_000_000)
    assert await blobs.put_stream(chunks(*parts)) == (expected, 6_000_000)
    assert [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [expected]


async def test_a_blob_gets_its_name_only_when_its_bytes_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, name = await Blobs.open(str(tmp_path / "b")), hashlib.sha256(b"x").hexdigest()
    seen: list[tuple[str, bool]] = []
    real = blobs_module._fsync

    def fsync(*paths: Path) -> None:
        seen.append((paths[0].parent.name, (tmp_path / "b" / name[:2] / name).exists()))
        real(*paths)

    monkeypatch.setattr(blobs_module, "_fsync", fsync)
    assert await blobs.put(b"x", name) == name
    assert seen == [("incoming", False), (name[:2], True)]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "incoming/x"])
async def test_a_name_that_is_no_hash_reaches_no_file(blobs: Blobs, name: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex"):
        await blobs.get(name)


async def test_a_directory_is_meant_literally_and_a_file_url_is_decoded(tmp_path: Path) -> None:
    odd = tmp_path / "100%41 #1?"
    name = await (await Blobs.open(str(odd))).put(b"x")
    assert (odd / name[:2] / name).read_bytes() == b"x"
    assert await (await Blobs.open(odd.as_uri())).get(name) == b"x"


async def test_a_missing_blob_is_a_key_error(blobs: Blobs) -> None:
    with pytest.raises(KeyError):
        await blobs.get("0" * 64)
    with pytest.raises(KeyError):
        async for _ in blobs.stream("0" * 64, 0, 4):
            pass
    assert not await blobs.exists("0" * 64)


async def test_a_full_or_vanished_store_is_a_storage_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(StorageError, match="cannot be used"):
        await Blobs.open(str(blocked / "blobs"))
    with pytest.raises(StorageError, match="cannot be used"):
        await Blobs.open("gopher://somewhere")


async def test_the_sweep_removes_what_no_row_names(rows: Rows, blobs: Blobs, tmp_path: Path) -> None:
    kept = await blobs.put(b"kept")
    lost = await blobs.put(b"lost")
    (tmp_path / "blobs" / "incoming").mkdir(exist_ok=True)
    (tmp_path / "blobs" / "incoming" / "half").write_bytes(b"half")
    staged = tmp_path / "blobs" / kept[:2] / f"{kept}#1"  # what a kill -9 in the middle of a put leaves behind
    staged.write_bytes(b"ke")
    async with rows.writing() as connection:
        await connection.execute(insert(schema.models).values(model_row()))
        await connection.execute(
            insert(schema.model_files).values(name="m", version="1", path="p", sha256=kept, size=4)
        )
    assert await references.sweep(rows, blobs) == 1
    assert await blobs.exists(kept)
    assert not await blobs.exists(lost)
    assert not (tmp_path / "blobs" / "incoming" / "half").exists()
    assert not staged.exists()


async def test_a_blob_is_not_removed_between_put_and_row(blobs: Blobs) -> None:
    """A put that meets a removal of the same bytes waits for it and stores them again."""
    name = await blobs.put(b"same bytes")
    asked, go = asyncio.Event(), asyncio.Event()

    async def unused(_: str) -> bool:
        asked.set()
        await go.wait()
        return False

    async def store() -> None:
        async with blobs.holding(name):
            await blobs.put(b"same bytes")
            assert not await blobs.remove(name, unused)

    removal = asyncio.create_task(blobs.remove(name, unused))
    await asked.wait()
    storing = asyncio.create_task(store())
    await asyncio.sleep(0.02)
    assert not storing.done()
    go.set()
    assert await removal
    await storing
    assert await blobs.exists(name)
