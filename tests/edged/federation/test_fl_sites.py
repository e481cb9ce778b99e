"""Two tiers: sites learn together through their leaders, and what each party sees is what the documents say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import pytest
from fl_sites import PLAN, Group, One, update_of
from fl_stage import WHO

from cloudd.federation import page, views
from cloudd.federation.errors import FederationError
from cloudd.federation.service import Federation
from edged.federation import chain
from edged.federation import site as site_module
from edged.federation.cloud import Rejected
from edgekit.messages.federation import LeadOrder, Over, PublishedRound, RoundProblem, SiteSum
from edgekit.packages import Package
from edgekit.secagg import messages, signatures
from tests.support.federation import Killed, begin, definition, site, small_package

Here = tuple[Federation, str]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory.mktemp("model") / "small")


class Ground:
    """The upper cloudd and those of the sites, all running."""

    def __init__(self, group: Group, upper: Here, below: list[Here]) -> None:
        self.group, self.upper, self.below = group, upper, below

    async def begin(self, plan: str = PLAN, short: bool = False, **changes: object) -> None:
        self.job = await self.group.begin(self.upper[0], plan, short, **changes)
        for one, (federation, _) in zip(self.group.sites, self.below, strict=True):
            await one.begin(federation, self.group.package, self.job)

    def running(self, *, without: str = "") -> list[asyncio.Task[Over]]:
        """Everybody takes part; of the site `without` only the leader."""
        work = [one.learn(self.upper[1], self.job.id) for one in self.group.lone]
        for one, (_, url) in zip(self.group.sites, self.below, strict=True):
            work.append(one.leader.lead(url, one.job, self.upper[1]))
            work += [device.learn(url, one.job) for device in one.devices if one.name != without]
        return [asyncio.create_task(one) for one in work]

    def everybody(self) -> list[One]:
        below = [one for place in self.group.sites for one in (place.leader, *place.devices)]
        return [*self.group.lone, *below]


@contextlib.asynccontextmanager
async def ground(root: Path, package: Package, **changes: object) -> AsyncIterator[Ground]:
    group = Group(root, package, **changes)  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as stack:
        upper = await stack.enter_async_context(site(root / "upper"))
        below = [await stack.enter_async_context(site(one.root / "cloudd")) for one in group.sites]
        yield Ground(group, upper, below)


async def over(tasks: list[asyncio.Task[Over]], seconds: float = 60.0) -> list[Over]:
    try:
        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*tasks))
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ended(federation: Federation, job: str) -> str:
    async with asyncio.timeout(20):
        while (row := await federation.find(job)).ended_at is None:
            await asyncio.sleep(0.05)
    return f"{row.status}{row.reason} {row.result}"


async def test_two_sites_and_a_lone_device_end_with_the_mean_over_all_devices(package: Package, tmp_path: Path) -> None:
    async with ground(tmp_path, package) as here:
        await here.begin(rounds=3)
        ends = await over(here.running())
        assert {(one.outcome, one.version) for one in ends} == {("finished", 3)}
        first = here.group.lone[0].model
        assert first is not None
        for one in here.everybody():
            np.testing.assert_array_equal(one.model, first)
        wanted, size = np.zeros(first.size), first.size
        for version in range(3):
            wanted += np.mean([update_of(index, version, size) for index in (90, 0, 1, 2, 10, 11, 12)], axis=0)
        start = await _start(here)
        np.testing.assert_allclose(first, start + wanted, atol=1e-5)
        for place, (federation, _) in zip(here.group.sites, here.below, strict=True):
            assert await ended(federation, place.job) == f"finished small@1-{place.name}"
            assert place.leader.note is not None and place.leader.note.leads
            assert (place.leader.note.stage, place.leader.note.contributed) == ("done", 3)
            for device in place.devices:
                assert device.note is not None
                assert (device.note.stage, device.note.contributed) == ("judging", 3)
                assert [one.outcome for one in chain.read(device.audit)] == ["summed"] * 3
            assert [one.outcome for one in chain.read(place.leader.audit)] == ["summed"] * 3
        assert await ended(here.upper[0], here.job.id) == "finished small@1-group"


async def test_sites_learn_together_by_fednova_as_if_they_were_one(package: Package, tmp_path: Path) -> None:
    """Every device makes five steps, so that the state moves by five times the mean of a fifth of each update."""
    nova = PLAN.replace('"fedavg"', '"fednova"\nmost_steps = 8')
    async with ground(tmp_path, package) as here:
        await here.begin(nova, rounds=2)
        ends = await over(here.running())
        assert {(one.outcome, one.version) for one in ends} == {("finished", 2)}
        first = here.group.lone[0].model
        assert first is not None
        for one in here.everybody():
            np.testing.assert_array_equal(one.model, first)
        wanted = await _start(here)
        for version in range(2):
            wanted = wanted + np.mean(
                [update_of(index, version, first.size) for index in (90, 0, 1, 2, 10, 11, 12)], axis=0
            )
        np.testing.assert_allclose(first, wanted, atol=1e-4)


async def _start(here: Ground) -> np.ndarray:
    from cloudd.federation import files
    from edgekit.federated.opening import open_rules

    folder = here.group.root / "opened"
    await files.materialise(here.job, here.upper[0].store.blobs, folder)
    _, state = open_rules(here.job, folder)
    return state.model


async def test_an_evaluation_counts_the_samples_of_all_devices_of_all_sites(package: Package, tmp_path: Path) -> None:
    """One of the sites trusts its own cloudd and has no masks below; between sites there are."""
    async with ground(tmp_path, package) as here:
        here.group.sites[1].plain = True
        await here.begin(rounds=1, evaluate_every=1)
        await over(here.running())
        rounds = (await views.detail(here.upper[0], here.job.id)).rounds
        (judged,) = [one for one in rounds if one.kind == "evaluate"]
        samples = sum(index + 4 for index in (90, 0, 1, 2, 10, 11, 12))
        assert judged.figures is not None and judged.figures.samples == samples
        assert judged.figures.loss == pytest.approx(0.5, abs=0.01)
        for place, (federation, _) in zip(here.group.sites, here.below, strict=True):
            rounds = (await views.detail(federation, place.job)).rounds
            assert sorted((one.kind, one.outcome) for one in rounds) == [("evaluate", "summed"), ("learn", "summed")]


async def test_a_site_without_devices_sits_out_and_still_gets_every_sum(package: Package, tmp_path: Path) -> None:
    """The others go on; the site's cloudd breaks off the round that it could not hold."""
    async with ground(tmp_path, package, lone=2) as here:
        await here.begin(rounds=1, short=True)
        ends = await over(here.running(without="south"))
        assert {(one.outcome, one.reason) for one in ends} == {("finished", "")}
        south = here.group.sites[1]
        assert south.leader.note is not None
        assert (south.leader.note.contributed, south.leader.note.version) == (0, 1)
        np.testing.assert_array_equal(south.leader.model, here.group.lone[0].model)
        assert await ended(here.below[1][0], south.job) == "finished small@1-south"
        refused = [one for round_ in (await views.detail(here.upper[0], here.job.id)).rounds for one in round_.refusals]
        assert {one.rule for one in refused} == {"survivors"}


async def test_buckets_of_sites_go_down_to_every_device(package: Package, tmp_path: Path) -> None:
    async with ground(tmp_path, package, lone=8, names=("north",)) as here:
        robust = PLAN.replace(
            "[plan.strategy]", '[plan.robust]\nkind = "median"\nbuckets = 3\nmin_bucket = 3\n[plan.strategy]'
        )
        await here.begin(robust, rounds=1, least=3, most=4)
        ends = await over(here.running())
        assert {(one.outcome, one.reason, one.version) for one in ends} == {("finished", "", 1)}
        for one in here.everybody():
            np.testing.assert_array_equal(one.model, here.group.lone[0].model)
        (published,) = await here.below[0][0].store.published(here.group.sites[0].job, 0, 9)
        assert len(published.sums) == 3


async def test_a_leader_takes_no_other_sum_than_it_asked_its_site_for(package: Package, tmp_path: Path) -> None:
    async with ground(tmp_path, package) as here:
        await here.begin(rounds=1)
        run = here.below[0][0].runs[here.group.sites[0].job]
        rules, state = run.progress.rules, run.progress.state
        order = LeadOrder(kind="learn", version=0, state="0" * 64)
        config = rules.config("learn", rules.digest(state), number=4, colluders=1, prg="aes-256-ctr", rosters=bytes(32))
        size = (config.parameters + 2) * 4
        right = SiteSum(
            number=4, kind="learn", version=0, config=messages.encode(config), sha256="0" * 64, size=size, survivors=3
        )
        assert site_module._checked(right, order, rules, state) == config
        other = msgspec.structs.replace(config, model=bytes(32))
        for wrong in (
            {"number": 5}, {"kind": "evaluate"}, {"version": 1}, {"survivors": 2}, {"survivors": 5}, {"size": size - 4},
            {"config": b"nonsense"}, {"config": messages.encode(other)},
        ):  # fmt: skip
            with pytest.raises(Rejected, match="none of the round that was asked for"):
                site_module._checked(msgspec.structs.replace(right, **wrong), order, rules, state)


class Http:
    """A device that says what it likes."""

    def __init__(self, url: str, job: str, device: str) -> None:
        self._place, self._device = f"{url}/v1/federation/jobs/{job}", device

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        async with (
            aiohttp.ClientSession(headers={"Device": self._device}) as session,
            session.request(method, f"{self._place}{path}", data=body) as reply,
        ):
            return reply.status, await reply.read()


async def test_only_the_leader_leads_and_only_it_gets_the_sum_of_its_site(package: Package, tmp_path: Path) -> None:
    async with ground(tmp_path, package) as here:
        await here.begin(rounds=1)
        north, (federation, url) = here.group.sites[0], here.below[0]
        listed = {one.id: one.leads for one in await federation.listed(north.leader.node)}
        assert listed == {north.job: True}
        assert [one.leads for one in await federation.listed(north.devices[0].node)] == [False]
        assert await federation.listed(here.group.sites[1].leader.node) == []
        leader, member = Http(url, north.job, north.leader.id), Http(url, north.job, north.devices[0].id)
        stranger = Http(url, north.job, here.group.sites[1].leader.id)
        run = federation.runs[north.job]
        state = run.progress.moving_digest().hex()
        shown = await views.detail(federation, north.job)
        assert "led by" in page.render(shown, 0.0) and shown.job.upper == here.job.id
        order = msgspec.json.encode(LeadOrder(kind="learn", version=0, state=state))
        for who in (member, stranger):
            for method, path in (
                ("GET", "/lead"), ("POST", "/lead/sum"), ("POST", "/lead/published"), ("POST", "/lead/over"),
                ("GET", f"/lead/upper/{'0' * 64}"), ("PUT", f"/lead/upper/{'0' * 64}?offset=0"),
            ):  # fmt: skip
                assert (await who.ask(method, path, order if method == "POST" else None))[0] == 404
        devices = [asyncio.create_task(one.learn(url, north.job)) for one in north.devices]
        status, body = await leader.ask("POST", "/lead/sum", order)
        assert status == 200
        found = json.loads(body)
        assert (found["survivors"], found["version"]) == (3, 0)
        assert (await leader.ask("GET", f"/files/{found['sha256']}"))[0] == 200
        assert (await member.ask("GET", f"/files/{found['sha256']}"))[0] == 404
        assert (await stranger.ask("GET", f"/files/{found['sha256']}"))[0] == 404
        assert (await leader.ask("POST", "/lead/sum", order))[1] == body  # asked again, it is the same sum
        standing = msgspec.json.encode({"version": 0, "state": run.progress.digest.hex()})
        assert (await leader.ask("POST", "/next", standing))[0] == 409
        for one in devices:
            one.cancel()
        await asyncio.gather(*devices, return_exceptions=True)


async def test_a_site_moves_only_by_sums_that_can_be_the_upper_jobs(package: Package, tmp_path: Path) -> None:
    async with ground(tmp_path, package) as here:
        await here.begin(rounds=2)
        north, (federation, url) = here.group.sites[0], here.below[0]
        tasks = here.running()
        async with asyncio.timeout(60):
            while here.upper[0].runs[here.job.id].progress.version < 1:
                await asyncio.sleep(0.02)
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (first,) = await here.upper[0].store.published(here.job.id, 0, 1)
        await _until(lambda: federation.runs[north.job].progress.version in (0, 1))
        run, leader = federation.runs[north.job], Http(url, north.job, north.leader.id)
        version = run.progress.version
        (right,) = first.sums
        data = await here.upper[0].store.blobs.get(right.sha256)

        async def tell(words: bytes, **changes: object) -> str:
            import hashlib

            sha256 = hashlib.sha256(words).hexdigest()
            assert (await leader.ask("PUT", f"/lead/upper/{sha256}?offset=0", words))[0] in (200, 409)
            one = msgspec.structs.replace(right, sha256=sha256, **changes)
            told = PublishedRound(version=version + 1, sums=(one,))
            status, body = await leader.ask("POST", "/lead/published", msgspec.json.encode(told))
            assert status == 409
            return msgspec.json.decode(body, type=RoundProblem).rule

        words = np.frombuffer(data, "<u4").copy()
        words[0] ^= 1 << 30
        assert await tell(words.tobytes()) == "value"  # longer than clipped updates can be
        assert await tell(data[:-4]) in ("value", "order")
        assert await tell(data, number=right.number + 1) == "value"
        assert await tell(data, survivors=0) == "value"
        order = msgspec.json.encode(LeadOrder(kind="learn", version=version, state="0" * 64))
        assert (await leader.ask("POST", "/lead/sum", order))[0] == 409
        order = msgspec.json.encode(LeadOrder(kind="learn", version=version + 1, state="0" * 64))
        assert (await leader.ask("POST", "/lead/sum", order))[0] == 409
        told = msgspec.json.encode(Over(outcome="finished", version=2))
        assert (await leader.ask("POST", "/lead/over", told))[0] == 409
        assert run.progress.version == version


async def _until(true: object, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_a_definition_that_does_not_fit_the_upper_job_is_refused(package: Package, tmp_path: Path) -> None:
    async with ground(tmp_path, package) as here:
        job = await here.group.begin(here.upper[0], rounds=1)
        north, (federation, _) = here.group.sites[0], here.below[0]
        rosters = [north.plant.roster(tmp_path / "r")]
        right = north.definition(job)

        async def refused(text: str, why: str) -> None:
            with pytest.raises(FederationError, match=why):
                await begin(federation, package, text, rosters)

        await refused(right.replace('service = "solder"', 'service = "other"'), "the upper job is for")
        await refused(right.replace('leader = "', 'leader = "x'), "id of the site's leader")
        await refused(
            north.definition(job, lambda text: text.replace("secure", "rounds = 3\nsecure")), "rounds: the upper"
        )
        other = msgspec.structs.replace(job.files[0], sha256="0" * 64)
        wrong = msgspec.structs.replace(job, files=(other, *job.files[1:]))
        await refused(north.definition(wrong), "derives another train step .*both must run the same release")
        await refused(north.definition(msgspec.structs.replace(job, package="0" * 64)), "bring the very package")
        site_job = await north.begin(federation, package, job)
        await refused(north.definition(site_job), "two tiers, not three")
        scaffold = PLAN.replace("fedavg", "scaffold").replace(
            "weighting = {most = 8, samples = 1000}", "devices = 4\ncontrol_scale = 2.0"
        )
        above = await begin(
            here.upper[0], package, definition(here.group.plant, scaffold, name="other"),
            [here.group.plant.roster(tmp_path / "g")],
        )  # fmt: skip
        await refused(north.definition(above.job), "through two tiers go fedavg, fedavgm, adaptive and fednova")


# --- killed -----------------------------------------------------------------------------------------------------------

LEADER = (
    "fl.trained", "fl.keys", "fl.shares", "fl.held", "fl.masked", "fl.vector", "fl.saved", "fl.uploaded", "fl.vote",
    "fl.reveal", "fl.apply", "fl.applied", "fl.recorded",
)  # fmt: skip


class Died(BaseException):
    """As SIGKILL, but for what `finally` does on the way."""


async def _as_leader(one: One, url: str, job: str, upper: str, leads: int) -> Over:
    WHO.set(leads)
    while True:
        try:
            return await one.lead(url, job, upper)
        except Died:
            await asyncio.sleep(0.01)


async def test_a_leader_that_is_killed_at_any_point_goes_on_and_its_site_is_in_the_sum_once(
    monkeypatch: pytest.MonkeyPatch, package: Package, tmp_path: Path
) -> None:
    """One job for all points, one after the other: each round the leader dies at the next."""
    points = list(LEADER)

    def crash_point(name: str) -> None:
        if WHO.get() == 7 and points and name == points[0]:
            points.pop(0)
            raise Died(name)

    for module in ("participant", "sitting", "updates"):
        monkeypatch.setattr(f"edged.federation.{module}.crash_point", crash_point)
    async with ground(tmp_path, package, names=("north",), lone=2) as here:
        await here.begin(rounds=len(LEADER))
        north, (_, url) = here.group.sites[0], here.below[0]
        tasks = [asyncio.create_task(one.learn(here.upper[1], here.job.id)) for one in here.group.lone]
        tasks += [asyncio.create_task(one.learn(url, north.job)) for one in north.devices]
        tasks.append(asyncio.create_task(_as_leader(north.leader, url, north.job, here.upper[1], 7)))
        ends = await over(tasks, 100)
        assert points == []
        assert {(one.outcome, one.version) for one in ends} == {("finished", len(LEADER))}
        first = here.group.lone[0].model
        for one in here.everybody():
            np.testing.assert_array_equal(one.model, first)
        assert first is not None
        wanted = await _start(here)
        for version in range(len(LEADER)):
            wanted = wanted + np.mean([update_of(index, version, first.size) for index in (90, 91, 0, 1, 2)], axis=0)
        np.testing.assert_allclose(first, wanted, atol=1e-5)
        audit = north.leader.audit
        assert chain.first_wrong(audit, signatures.point(north.leader.key.public_key())) is None
        assert [one.outcome for one in chain.read(audit)] == ["summed"] * len(LEADER)


SITE = (
    "federation.opened", "federation.keys:2", "federation.held.closed", "federation.masked:2",
    "federation.masked.closed", "federation.votes:3", "federation.reveals:2", "federation.unmasked",
    "federation.site.sum", "federation.site.collected", "federation.site.moved",
)  # fmt: skip
UPPER = ("federation.opened", "federation.shares:2", "federation.masked:3", "federation.sum", "federation.published")


@pytest.mark.parametrize(("killed_site", "points"), [(True, SITE), (False, UPPER)])
async def test_a_cloudd_of_either_tier_is_killed_in_every_step_and_the_model_is_the_same(
    package: Package, tmp_path: Path, killed_site: bool, points: tuple[str, ...]
) -> None:
    rounds = 8
    group = Group(tmp_path, package, names=("north",), lone=2)
    north = group.sites[0]
    folders = tmp_path / "upper", north.root / "cloudd"
    async with site(folders[0]) as (upper, _):
        job = await group.begin(upper, rounds=rounds)
        async with site(folders[1]) as (below, _):
            await north.begin(below, package, job)
    killed, calm = Killed(folders[killed_site]), Killed(folders[not killed_site])
    places = {killed_site: f"http://127.0.0.1:{killed.port}", not killed_site: f"http://127.0.0.1:{calm.port}"}
    calm.start()
    keeping = asyncio.create_task(killed.keep_up(points))
    tasks = [asyncio.create_task(one.learn(places[False], job.id)) for one in group.lone]
    tasks += [asyncio.create_task(one.learn(places[True], north.job)) for one in north.devices]
    tasks.append(asyncio.create_task(north.leader.lead(places[True], north.job, places[False])))
    try:
        ends = await over(tasks, 110)
    except TimeoutError:
        raise AssertionError(
            f"it hangs after {killed.deaths} deaths: {points[killed.deaths :][:1]} {keeping}"
        ) from None
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        killed.stop()
        calm.stop()
    assert killed.deaths == len(points), f"never reached: {points[killed.deaths]}"
    assert {(one.outcome, one.version) for one in ends} == {("finished", rounds)}
    first = group.lone[0].model
    assert first is not None
    for one in (*group.lone, north.leader, *north.devices):
        np.testing.assert_array_equal(one.model, first)
        assert one.note is not None and one.note.contributed == rounds
