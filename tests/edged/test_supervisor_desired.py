"""Wanted services: durable through every crash point, files and table agree, hand edits count, last good is kept."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.desired import MIGRATIONS, Change, DesiredStore, check_desired, combination_key
from edged.follower import Follower
from edged.health import Health
from edged.plan import make_plan, unproven
from edged.store import Database
from edgekit.messages import Desired


def text(name: str, deadline: int = 100, model: str = "m") -> str:
    return f'name = "{name}"\nmodel = "{model}"\ndeadline_ms = {deadline}\n'


def open_store(directory: Path) -> tuple[DesiredStore, list[str]]:
    store = DesiredStore(Database(directory / "edged.db", MIGRATIONS), directory / "services")
    return store, store.open()


def files(directory: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in (directory / "services").glob("*.toml")}


def table(store: DesiredStore) -> dict[str, str]:
    return {entry.name: entry.text for entry in store.entries()}


def test_a_change_is_in_table_and_files(tmp_path: Path) -> None:
    store, problems = open_store(tmp_path)
    assert problems == []
    store.apply(Change(put={"a": text("a"), "b": text("b")}, origin="cloud", revision="7"))
    assert table(store) == files(tmp_path) == {"a": text("a"), "b": text("b")}
    store.apply(Change(put={"a": text("a", 200)}, remove=["b"]))
    assert table(store) == files(tmp_path) == {"a": text("a", 200)}
    assert store.revision() == "", "what cloudd set was replaced, so its wish is not followed any more"
    assert (tmp_path / "services" / "a.toml").stat().st_mode & 0o077 == 0


def test_edited_added_and_removed_files_are_taken_over(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"a": text("a"), "b": text("b")}, origin="cloud", revision="7"))
    (tmp_path / "services" / "a.toml").write_text(text("a", 300))
    (tmp_path / "services" / "b.toml").unlink()
    (tmp_path / "services" / "c.toml").write_text(text("c"))
    store, problems = open_store(tmp_path)
    assert problems == []
    assert table(store) == {"a": text("a", 300), "c": text("c")}
    assert {entry.name: entry.origin for entry in store.entries()} == {"a": "local", "c": "local"}
    assert store.revision() == ""


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.toml", b"name = ", "TOML"),
        ("a.toml", b"\xff\xfe", "a.toml"),
        ("a.toml", b'name = "a"\nmodel = "m"\ndedline_ms = 5\n', "dedline_ms"),
        ("other.toml", text("zz").encode(), "rename it zz.toml"),
    ],
)
def test_a_broken_file_is_named_and_its_service_goes_on(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"a": text("a"), "b": text("b")}))
    (tmp_path / "services" / name).write_bytes(content)
    store, problems = open_store(tmp_path)
    assert len(problems) == 1 and word in problems[0]
    assert table(store) == {"a": text("a"), "b": text("b")}


@pytest.mark.parametrize("point", ["supervisor.desired-written", "supervisor.files-written"])
def test_a_change_survives_a_kill_at_every_point(tmp_path: Path, point: str) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"a": text("a"), "b": text("b")}))
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); "
        "from test_supervisor_desired import *; "
        "store, _ = open_store(Path(sys.argv[1])); "
        "store.apply(Change(put={'a': text('a', 200), 'c': text('c')}, remove=['b'], revision='9'))"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)],
        env={**os.environ, "EDGED_CRASH_AT": point},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    store, problems = open_store(tmp_path)
    assert problems == []
    assert table(store) == files(tmp_path) == {"a": text("a", 200), "c": text("c")}
    assert store.revision() == "9"


def test_a_lost_database_is_rebuilt_from_the_files(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"a": text("a")}))
    for path in tmp_path.glob("edged.db*"):
        path.unlink()
    (tmp_path / "edged.db").write_bytes(b"this is no database" * 100)
    store, problems = open_store(tmp_path)
    assert problems == []
    assert table(store) == {"a": text("a")}


def test_forgiving_only_the_hopeless_keeps_refusals_with_a_last_good(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"a": text("a"), "b": text("b")}))
    store.mark_good("a", text("a", 50), "m@1")
    store.mark_refused("a", "k1", "no")
    store.mark_refused("b", "k2", "no")
    store.forgive(hopeless_only=True)
    assert {entry.name: entry.refused_key for entry in store.entries()} == {"a": "k1", "b": ""}
    store.forgive()
    assert {entry.name: entry.refused_key for entry in store.entries()} == {"a": "", "b": ""}


def test_bad_definitions_are_named_and_the_good_ones_stay() -> None:
    good, problems = check_desired([text("a"), "nonsense", text("b")], "from cloudd", [])
    assert set(good) == {"a", "b"}
    assert len(problems) == 1 and "from cloudd" in problems[0]


async def follow(store: DesiredStore, health: Health, *steps: Desired, allowed: Sequence[Path] = ()) -> list[Change]:
    changes: list[Change] = []

    async def change(change: Change) -> None:
        store.apply(change)
        changes.append(change)

    follower = Follower(store, change, health, allowed)
    follower.open()
    for step in steps:
        if step.revision != follower.revision:
            await follower._apply(step)
    return changes


async def test_the_desired_state_replaces_its_own_services_and_leaves_local_ones(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"mine": text("mine"), "same": text("same")}))
    health = Health()
    await follow(
        store,
        health,
        Desired(revision="1", services=[text("a"), text("b"), text("same")]),
        Desired(revision="2", services=[text("a", 150)]),
    )
    assert table(store) == {"mine": text("mine"), "same": text("same"), "a": text("a", 150)}
    assert store.revision() == "2"
    assert health.level() == "ok"


async def test_a_local_definition_is_neither_replaced_nor_removed_by_cloudd(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"solder": text("solder")}))
    health = Health()
    wanted = Desired(revision="1", services=[text("solder", 300), text("a")])
    await follow(store, health, wanted)
    assert table(store) == {"solder": text("solder"), "a": text("a")}, "the rest is followed"
    (item,) = health.items()
    assert (item.code, item.severity) == ("desired.conflict", "warning")
    for words in ("service solder", "edged services remove solder", "cloudd devices desired"):
        assert words in item.text
    assert store.revision() == "", "so that cloudd shows it as not followed, and sends it again"
    assert await follow(store, health, wanted) == [], "which then changes nothing"
    await follow(store, health, Desired(revision="2", services=[]))
    assert table(store) == {"solder": text("solder")}
    assert health.items() == [] and store.revision() == "2"


async def test_what_was_in_the_way_of_cloudd_is_noticed_when_it_comes_and_when_it_goes(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    health = Health()

    async def change(change: Change) -> None:
        store.apply(change)

    follower = Follower(store, change, health, [])
    follower.open()
    task = asyncio.create_task(follower.run())

    async def until(what: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not what():
                await asyncio.sleep(0.01)

    follower.arrived(Desired(revision="1", services=[text("solder")]))
    await until(lambda: follower.revision == "1")
    store.apply(Change(put={"solder": text("solder", 500)}))
    follower.look_again()
    await until(lambda: [item.code for item in health.items()] == ["desired.conflict"])
    assert table(store) == {"solder": text("solder", 500)} and follower.revision == ""
    store.apply(Change(remove=["solder"]))
    follower.look_again()
    await until(lambda: table(store) == {"solder": text("solder")})
    await until(lambda: follower.revision == "1" and health.items() == [])
    task.cancel()


def folder(name: str, path: str, output: str = "") -> str:
    outputs = f'[[outputs]]\npath = "{output}"\n' if output else ""
    return f'{text(name)}{outputs}[source]\nkind = "folder"\npath = "{path}"\n'


async def test_cloudd_may_name_only_paths_that_the_site_allows(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path / "state")
    allowed = tmp_path / "spool"
    (allowed / "in").mkdir(parents=True)
    (allowed / "link").symlink_to("/etc")
    output = '[[outputs]]\npath = "{}"\n'
    good = [folder("a", f"{allowed}/in", f"{allowed}/results.jsonl"), text("b")]
    bad = {
        "c": text("c") + output.format("/etc/cron.d/x"),
        "d": folder("d", "/home"),
        "e": text("e") + output.format(f"{allowed}/link/passwd"),
        "f": text("f") + output.format(f"{allowed}-not/x.jsonl"),
    }
    health = Health()
    await follow(store, health, Desired(revision="1", services=[*good, *bad.values()]), allowed=[allowed])
    assert table(store).keys() == {"a", "b"}
    (item,) = health.items()
    assert (item.code, item.severity) == ("desired", "error")
    for words in ("/etc/cron.d/x", '"source.path" is "/home"', 'service "e"', 'service "f"', "allow_paths"):
        assert words in item.text
    store.apply(Change(put=bad))  # the device's own people may
    assert table(store).keys() == {"a", "b", *bad}


async def test_a_service_of_cloudd_ends_when_the_site_does_not_allow_its_paths_any_more(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    health = Health()
    wanted = Desired(revision="1", services=[folder("a", "/srv/a"), text("b")])
    await follow(store, health, wanted, allowed=[Path("/srv")])
    assert table(store).keys() == {"a", "b"} and health.items() == []
    await follow(store, health, allowed=[Path("/var/spool/edged")])
    assert table(store).keys() == {"b"} and store.revision() == ""
    assert "/srv/a" in health.items()[0].text
    await follow(store, health, wanted, allowed=[Path("/srv")])
    assert table(store).keys() == {"a", "b"} and health.items() == []


async def test_an_unreadable_desired_definition_takes_nothing_away(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    health = Health()
    await follow(
        store,
        health,
        Desired(revision="1", services=[text("a"), text("b")]),
        Desired(revision="2", services=[text("a", 200), 'name = "b"\nmodel = "m"\nnew_key = 1\n']),
    )
    assert table(store) == {"a": text("a", 200), "b": text("b")}
    (item,) = health.items()
    assert item.code == "desired" and "new_key" in item.text


async def test_an_unchanged_desired_state_changes_no_definition(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    same = [text("a")]
    changes = await follow(store, Health(), Desired(revision="1", services=same), Desired(revision="2", services=same))
    assert changes[1].put == {} and list(changes[1].remove) == []


# --- the plan ---------------------------------------------------------------------------------------------------------

PACKAGES = {"m@1": Path("/m1"), "m@2": Path("/m2"), "n@1": Path("/n1")}


def test_the_plan_takes_the_newest_model_and_falls_back_to_the_last_good(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={"a": text("a"), "b": text("b", model="n@2"), "c": text("c", model="n")}))
    store.mark_good("a", text("a", 50), "m@1")
    plan = make_plan(store.entries(), PACKAGES)
    assert [(choice.name, choice.ref, choice.last_good) for choice in plan.choices] == [
        ("a", "m@2", False),
        ("c", "n@1", False),
    ]
    assert plan.missing == {"n@2"}
    assert plan.held["b"].state == "loading"
    store.mark_refused("a", combination_key(text("a"), "m@2"), "no")
    plan = make_plan(store.entries(), PACKAGES)
    assert plan.choices[0].text == text("a", 50) and plan.choices[0].last_good


def test_one_by_one_tries_a_single_unproven_definition(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.apply(Change(put={name: text(name) for name in "abc"}))
    store.mark_good("c", text("c"), "m@2")
    plan = make_plan(store.entries(), PACKAGES, {}, one_by_one=True)
    assert [choice.name for choice in plan.choices] == ["a", "c"]
    entries = {entry.name: entry for entry in store.entries()}
    assert [choice.name for choice in unproven(plan, entries, {})] == ["a"]


@settings(max_examples=40, deadline=None)
@given(
    wanted=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), max_size=4),
    packages=st.sets(st.sampled_from(["m@1", "m@2"])),
)
def test_every_wanted_service_is_either_chosen_or_held(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, int], packages: set[str]
) -> None:
    store, _ = open_store(tmp_path_factory.mktemp("plan"))
    store.apply(Change(put={name: text(name, deadline) for name, deadline in wanted.items()}))
    for one_by_one in (False, True):
        plan = make_plan(store.entries(), {ref: Path("/") for ref in packages}, {}, one_by_one)
        chosen = {choice.name for choice in plan.choices}
        assert chosen | plan.held.keys() == wanted.keys()
        assert not chosen & plan.held.keys()
        assert bool(plan.missing) == (bool(wanted) and not packages)
