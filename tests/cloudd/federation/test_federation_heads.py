"""Heads of one round at cloudd: derived from the registered model, summed, solved, registered, and continued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from cloudd.federation import continuing, views
from cloudd.federation.definition import read
from cloudd.federation.errors import FederationError
from cloudd.federation.lineage import LINEAGE, Lineage
from cloudd.federation.preparing import prepare
from cloudd.federation.service import Federation
from cloudd.federation.store import JobRow
from edgekit import packages
from edgekit.federated.head_jobs import FEATURES_FILE, OneRoundHead
from edgekit.packages import Package
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import WEIGHTS_FILE
from edgekit.vision.classification import Classifier
from tests.support.federation import Killed, Plant, begin, definition, site
from tests.support.federation_devices import Device, fleet
from tests.support.heads import HEAD, LABELS, head_package, picture

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]
Here = tuple[Federation, str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return head_package(tmp_path_factory.mktemp("base") / "small")


@pytest.fixture(scope="module")
def rows(base: Package, tmp_path_factory: pytest.TempPathFactory) -> list[Rows]:
    """Features and classes of four devices."""
    folder = tmp_path_factory.mktemp("features") / "plan"
    prepare(base, *read(definition(None, HEAD, rounds=1, new_labels=["void"])), folder)
    options = SessionOptions(threads=1)
    with (
        closing(Classifier.load(base)) as model,
        closing(open_session(folder / FEATURES_FILE, "onnxruntime", options, [WEIGHTS_FILE])) as session,
    ):
        name = session.inputs[0].name

        def row(place: int, number: int) -> NDArray[np.float64]:
            data = picture(place, number, LABELS[number % 3])
            return np.asarray(session.run({name: model.tensor(data)})[0], np.float64).reshape(-1)

        features = [np.stack([row(place, number) for number in range(18)]) for place in range(4)]
    classes = np.arange(18) % 3
    return [(one, classes) for one in features]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    async with site(tmp_path / "cloudd") as found:
        yield found


def devices(plant: Plant, url: str, rows: list[Rows], continues: bool, out: int | None) -> list[Device]:
    """Each contributes its rows, or the difference to them in a job that continues one; `out` takes its own out."""
    made = []
    for index, key in enumerate(plant.devices):
        device = Device(index, key, url)

        def update(place: int, version: int, device: Device = device) -> NDArray[np.float32]:
            head = device.rules.head
            assert head is not None
            features, classes = rows[place]
            whole = head.result(features, classes).delta
            if continues:
                device.memory = whole.astype(np.int64)
            return head.result(features[:0], classes[:0]).delta if place == out else whole

        device.update = update
        made.append(device)
    return made


async def _ended(federation: Federation, job: str) -> JobRow:
    for _ in range(400):
        row = await federation.find(job)
        if row.ended_at is not None:
            return row
        await asyncio.sleep(0.05)
    raise AssertionError("the job does not end")


async def _head(
    here: Here, base: Package, plant: Plant, rows: list[Rows], out: int | None = None, **keys: object
) -> tuple[JobRow, list[Device]]:
    """One job to its end."""
    federation, url = here
    text = definition(plant, HEAD, **{"rounds": 1, "least": 4, **keys})
    row = await begin(federation, base, text, [plant.roster(federation.folder.parent / "r")])
    these = devices(plant, url, rows, "continues" in keys, out)
    await asyncio.wait_for(fleet(these, row.id, {"north": plant.public}), 40)
    return await _ended(federation, str(keys["name"])), these


async def _answers(federation: Federation, ref: str) -> float:
    """The share of new pictures that a registered model gets right."""
    entry = await federation.registry.resolve(ref)
    assert entry is not None
    made = packages.open_package(await federation.registry.materialise(entry))
    assert tuple(made.labels) == LABELS
    with closing(Classifier.load(made)) as model:
        said = [
            model.classify(picture(place, number, label)).label == label
            for place in range(4)
            for number in range(100, 104)
            for label in LABELS
        ]
    return float(np.mean(said))


async def test_one_round_makes_a_model_that_finds_a_class_which_the_base_does_not_have(
    here: Here, base: Package, rows: list[Rows]
) -> None:
    federation, _ = here
    row, these = await _head(here, base, Plant(4), rows, name="void-1", new_labels=["void"])
    assert (row.status, row.reason, row.result) == ("finished", "", "small@1-void-1")
    assert await _answers(federation, row.result) > 0.9
    entry = await federation.registry.resolve(row.result)
    assert entry is not None
    made = packages.open_package(await federation.registry.materialise(entry))
    lineage = msgspec.json.decode(made.path(LINEAGE).read_bytes(), type=Lineage)
    assert (lineage.source.model, lineage.job.sums) == ("small@1", 1)
    assert lineage.state == these[0].rules.digest(these[0].state).hex()


async def test_a_job_that_continues_one_takes_a_site_out_to_the_last_bit(
    here: Here, base: Package, rows: list[Rows]
) -> None:
    federation, _ = here
    plant = Plant(4)
    first, before = await _head(here, base, plant, rows, name="void-1", new_labels=["void"])
    second, after = await _head(here, base, plant, rows, 2, name="void-2", continues="void-1")
    assert (second.status, second.reason) == ("finished", "")
    head = before[0].rules.head
    assert head is not None
    stayed = sum(head.result(*rows[place]).delta.astype(np.int64) for place in (0, 1, 3))
    np.testing.assert_array_equal(after[0].state.model, stayed)
    assert (before[0].state.model != stayed).any()
    assert await _answers(federation, second.result) > 0.9
    settings = continuing.head_of(second.job)
    assert settings is not None and settings.continues == (first.id,)
    assert second.job.labels == LABELS


async def test_totals_are_continued_once_and_what_can_be_continued_is_not_forgotten(
    here: Here, base: Package, rows: list[Rows], tmp_path: Path
) -> None:
    federation, _ = here
    plant = Plant(4)
    first, _ = await _head(here, base, plant, rows, name="void-1", new_labels=["void"])
    second, _ = await _head(here, base, plant, rows, name="void-2", continues="void-1")
    text = definition(plant, HEAD, rounds=1, name="void-3", continues="void-1")
    with pytest.raises(FederationError, match="void-2 continues void-1"):
        await begin(federation, base, text, [plant.roster(tmp_path / "r")])
    assert continuing.lasting(await federation.store.jobs()) == {second.id}
    assert first.ended_at is not None
    await federation.store.forget(first.ended_at + 1e9, {second.id})
    assert [row.id for row in await federation.store.jobs()] == [second.id]
    third, _ = await _head(here, base, plant, rows, 0, name="void-3", continues="void-2")
    assert third.status == "finished"
    settings = continuing.head_of(third.job)
    assert settings is not None and settings.continues == (second.id, first.id)


async def test_an_evaluation_of_the_head_is_a_masked_sum_too(here: Here, base: Package, rows: list[Rows]) -> None:
    federation, url = here
    plant = Plant(3)
    text = definition(plant, HEAD, rounds=1, evaluate_every=1, name="two")  # two labels, as the made-up matrices have
    row = await begin(federation, base, text, [plant.roster(federation.folder.parent / "r")])
    two = [(features[classes < 2], classes[classes < 2]) for features, classes in rows]
    await asyncio.wait_for(fleet(devices(plant, url, two, False, None), row.id, {"north": plant.public}), 40)
    ended = await _ended(federation, "two")
    assert (ended.status, ended.reason) == ("finished", "")
    kinds = {one.kind: one for one in (await views.detail(federation, "two")).rounds}
    assert kinds["evaluate"].figures is not None and kinds["evaluate"].figures.samples == 60


async def test_a_device_that_takes_out_more_than_it_put_in_makes_the_round_void(
    here: Here, base: Package, rows: list[Rows]
) -> None:
    federation, url = here
    plant = Plant(3)
    text = definition(plant, HEAD, rounds=1, name="minus", new_labels=["void"], tries=1)
    row = await begin(federation, base, text, [plant.roster(federation.folder.parent / "r")])
    these = devices(plant, url, rows, True, 1)  # who has nothing in the totals, and takes its rows out of them
    for device in these[::2]:
        device.update = lambda place, version, device=device: np.zeros(device.rules.head.layout.size, np.float32)
    await asyncio.wait_for(fleet(these, row.id, {"north": plant.public}), 40)
    ended = await _ended(federation, "minus")
    assert ended.status == "failed" and "fewer samples than none" in ended.reason


async def test_a_new_class_that_no_device_has_fails_the_job_with_a_sentence(
    here: Here, base: Package, rows: list[Rows]
) -> None:
    two = [(features[classes < 2], classes[classes < 2]) for features, classes in rows]
    row, _ = await _head(here, base, Plant(4), two, name="void-1", new_labels=["void"])
    assert row.status == "failed" and 'fewer than 2 samples of the new class "void"' in row.reason


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"rounds": 2}, "takes one round"),
        ({"bits": 16}, "no room for the sums"),
        ({"new_labels": ["good"]}, "same label"),
        ({"continues": "nothing"}, "no job 'nothing'"),
        ({"new_labels": ["void"], "continues": "x"}, "has its labels"),
    ],
)
async def test_a_head_that_cannot_be_is_refused_when_it_is_started(
    here: Here, base: Package, keys: dict[str, object], match: str, tmp_path: Path
) -> None:
    plant = Plant(3)
    text = definition(plant, HEAD, **{"rounds": 1, **keys})
    with pytest.raises(FederationError, match=match):
        await begin(here[0], base, text, [plant.roster(tmp_path / "r")])


async def test_keys_of_a_head_belong_to_heads_and_its_base_needs_proof_pictures(here: Here, tmp_path: Path) -> None:
    plant = Plant(3)
    with pytest.raises(FederationError, match="belong to a head of one round"):
        read(definition(plant, new_labels=["void"]))
    with pytest.raises(FederationError, match="has none"):
        read(definition(plant, f"{HEAD}[local]\nepochs = 2\n", rounds=1))
    bare = head_package(tmp_path / "bare", samples=False)
    with pytest.raises(FederationError, match="no proof pictures"):
        await begin(here[0], bare, definition(plant, HEAD, rounds=1), [plant.roster(tmp_path / "r")])


async def test_a_head_that_goes_on_is_not_continued_yet(here: Here, base: Package, tmp_path: Path) -> None:
    plant = Plant(3)
    rosters = [plant.roster(tmp_path / "r")]
    await begin(here[0], base, definition(plant, HEAD, rounds=1, name="void-1", new_labels=["void"]), rosters)
    with pytest.raises(FederationError, match="void-1 is not over yet"):
        await begin(here[0], base, definition(plant, HEAD, rounds=1, name="void-2", continues="void-1"), rosters)
    await here[0].stop("void-1")
    with pytest.raises(FederationError, match="void-1 has ended without a sum"):
        await begin(here[0], base, definition(plant, HEAD, rounds=1, name="void-2", continues="void-1"), rosters)


async def test_only_an_ended_head_of_the_same_base_and_settings_is_continued(
    here: Here, base: Package, rows: list[Rows], tmp_path: Path
) -> None:
    federation, _ = here
    plant = Plant(4)
    await _head(here, base, plant, rows, name="void-1", new_labels=["void"])
    for keys, match in (({"service": "other"}, "service of void-1"), ({}, "fraction_bits of void-1 is 6, not 7")):
        more = HEAD if keys else f"{HEAD}fraction_bits = 7\n"
        text = definition(plant, more, **{"rounds": 1, "name": "void-2", "continues": "void-1", **keys})
        with pytest.raises(FederationError, match=match):
            await begin(federation, base, text, [plant.roster(tmp_path / "r")])


async def test_a_cloudd_that_is_killed_ends_with_the_same_totals_and_can_still_continue_them(
    base: Package, rows: list[Rows], tmp_path: Path
) -> None:
    folder, plant = tmp_path / "cloudd", Plant(4)
    killed = Killed(folder)
    async with site(folder) as (federation, _):
        text = definition(plant, HEAD, rounds=1, least=4, name="void-1", new_labels=["void"])
        job = (await begin(federation, base, text, [plant.roster(tmp_path / "r")])).id
    these = devices(plant, f"http://127.0.0.1:{killed.port}", rows, False, None)
    points = ("federation.masked:4", "federation.unmasked", "federation.sum", "federation.published")
    keeping = asyncio.create_task(killed.keep_up(points))
    try:
        await asyncio.wait_for(fleet(these, job, {"north": plant.public}), 60)
    finally:
        keeping.cancel()
        killed.stop()
    assert killed.deaths == len(points)
    head = these[0].rules.head
    assert head is not None
    whole = sum(head.result(*one).delta.astype(np.int64) for one in rows)
    np.testing.assert_array_equal(these[0].state.model, whole)
    async with site(folder) as here:
        assert (await _ended(here[0], "void-1")).result == "small@1-void-1"
        second, after = await _head(here, base, plant, rows, 1, name="void-2", continues="void-1")
        assert second.status == "finished"
        np.testing.assert_array_equal(after[0].state.model, whole - head.result(*rows[1]).delta.astype(np.int64))


def test_the_documented_head_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "federated.md").read_text("utf-8")
    example = text[text.index('name = "void-1"') :].partition("```")[0]
    found, plan = read(example.replace("02ab...", Plant(0).public))
    assert (found.new_labels, found.rounds) == (["void"], 1)
    assert plan.strategy == OneRoundHead()
