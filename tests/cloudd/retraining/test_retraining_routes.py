"""What a device asks of cloudd, and what it finds again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from retraining_bench import SPEC, Asked, Device, site

from cloudd.retraining import folders
from cloudd.retraining.bench import whose_turn
from cloudd.retraining.record import JobRecord
from cloudd.retraining.shelf import KEPT_S, Key
from edgekit.messages.retraining import FEWEST, RetrainRequest, fault


async def test_a_job_is_asked_for_filled_and_found_again_after_a_restart(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    async with site(tmp_path / "cloudd") as url:
        device = Device(url)
        assert (await device.begin(asked)).stage == "receiving"
        assert (await device.missing(asked)).total == len(asked.files)
        await device.fill(asked, leave=3)
        sha256 = (await device.missing(asked)).files[0].sha256
        assert (await device.put(asked, sha256, 0, asked.files[sha256][:100])).have == 100
    async with site(tmp_path / "cloudd") as url:
        device = Device(url)
        assert (await device.begin(asked)).stage == "receiving"
        missing = await device.missing(asked)
        assert missing.total == 3
        assert {one.sha256: one.have for one in missing.files}[sha256] == 100


async def test_a_part_that_does_not_go_on_changes_nothing_and_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    async with site(tmp_path / "cloudd") as url:
        device = Device(url)
        await device.begin(asked)
        sha256, data = next(iter(asked.files.items()))
        assert (await device.put(asked, sha256, 7, data[7:])).have == 0
        assert (await device.put(asked, sha256, 0, data[:50])).have == 50
        assert (await device.put(asked, sha256, 0, data[:50])).have == 50
        assert (await device.put(asked, sha256, 50, data[50:] + b"more")).have == 50
        wrong = bytes(len(data) - 50)
        assert (await device.put(asked, sha256, 50, wrong)).have == 0
        stored = await device.put(asked, sha256, 0, data)
        assert (stored.have, stored.whole) == (len(data), True)
        again = await device.put(asked, sha256, 0, data)
        assert again.whole


async def test_no_device_sees_jobs_or_files_of_another(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    async with site(tmp_path / "cloudd") as url:
        await Device(url).begin(asked)
        await Device(url).fill(asked, leave=1)
        other = Device(url, "DEVICE-B")
        sha256 = next(iter(asked.files))
        for method, path in (
            ("GET", f"/{asked.job}"),
            ("GET", f"/{asked.job}/missing"),
            ("PUT", f"/{asked.job}/files/{sha256}?offset=0"),
            ("GET", f"/{asked.job}/results/{sha256}"),
            ("DELETE", f"/{asked.job}"),
        ):
            status, _ = await other.ask(method, path, b"x" if method == "PUT" else None)
            assert status == 404, path
        assert (await other.begin(asked)).stage == "receiving"
        assert (await other.missing(asked)).total == len(asked.files), "not even the same bytes are shared"


async def test_a_newer_job_ends_the_older_one_of_the_service_and_needs_only_what_is_new(tmp_path: Path) -> None:
    older, newer = Asked(tmp_path / "a"), Asked(tmp_path / "b", version="1-2", pictures=15)
    elsewhere = Asked(tmp_path / "c", service="sockets")
    async with site(tmp_path / "cloudd") as url:
        device = Device(url)
        await device.begin(elsewhere)
        await device.begin(older)
        await device.fill(older, leave=1)
        await device.begin(newer)
        state = await device.state(older)
        assert state.stage == "closed" and "newer job" in state.text
        assert (await device.state(elsewhere)).stage == "receiving"
        assert (await device.missing(newer)).total == 3 + 1


async def test_what_cannot_be_done_is_refused_with_a_reason(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    async with site(tmp_path / "cloudd") as url:
        device = Device(url)
        status, data = await device.ask("PUT", f"/{'0' * 32}", asked.body)
        assert status == 409 and b"named after" in data
        few = Asked(tmp_path / "few", pictures=FEWEST)
        status, data = await device.ask("PUT", f"/{few.job}", few.body)
        assert status == 422 and b'plain\\" has 8' in data
        await device.begin(asked)
        status, _ = await device.ask("PUT", f"/{asked.job}/files/{'ab' * 32}?offset=0", b"x")
        assert status == 404
        status, _ = await device.ask("PUT", f"/{asked.job}/files/{next(iter(asked.files))}?offset=-1", b"x")
        assert status == 400
    async with site(tmp_path / "off", hours=0.0) as url:
        status, data = await Device(url).ask("PUT", f"/{asked.job}", asked.body)
        assert status == 422 and b"retraining_hours" in data


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ("plain", "bar", "bar")}, "two labels are the same"),
        ({"labels": ("plain", "stripe")}, "a picture has the label 2"),
        ({"pictures": ()}, "no picture is there to choose by"),
    ],
)
def test_a_request_that_contradicts_itself_says_how(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    request = msgspec.structs.replace(Asked(tmp_path).request, **changes)
    assert told in fault(request)


def test_names_of_files_lead_nowhere_else(tmp_path: Path) -> None:
    request = Asked(tmp_path).request
    first, second = request.network
    for path in ("../model.onnx", "/etc/passwd", "", ".hidden", "a/b"):
        entry = msgspec.structs.replace(second, path=path)
        assert "plain names" in fault(msgspec.structs.replace(request, network=(first, entry)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(Asked(tmp_path).body.replace(b'"size":', b'"size":-'), type=RetrainRequest)


async def test_pictures_and_jobs_are_forgotten_in_time(tmp_path: Path) -> None:
    asked, begun = Asked(tmp_path / "network"), 1.8e9
    async with site(tmp_path / "cloudd", wall=begun) as url:
        await Device(url).begin(asked)
        await Device(url).fill(asked, leave=1)
        status, _ = await Device(url).ask("DELETE", f"/{asked.job}")
        assert status == 204
        assert (await Device(url).state(asked)).stage == "closed"
    kept = tmp_path / "cloudd" / "DEVICE-A"
    async with site(tmp_path / "cloudd", wall=begun + KEPT_S - 10) as url:
        assert len(list((kept / "files").iterdir())) == len(asked.files) - 1
        newer = Asked(tmp_path / "newer", version="1-2")
        await Device(url).begin(newer)
        assert (await Device(url).missing(newer)).total == 1, "the pictures of the last job are here still"
        await Device(url).ask("DELETE", f"/{newer.job}")
    async with site(tmp_path / "cloudd", wall=begun + 3 * KEPT_S):
        assert not kept.exists()


async def test_pictures_that_may_not_stay_are_removed_at_once_but_for_those_of_other_jobs(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "a")
    other = Asked(tmp_path / "b", msgspec.structs.replace(SPEC, seed=9), pictures=13, service="sockets")
    kept = tmp_path / "cloudd" / "DEVICE-A"
    async with site(tmp_path / "cloudd") as url:
        device = Device(url)
        await device.begin(asked)
        await device.fill(asked, leave=1)
        await device.begin(other)
        status, _ = await device.ask("DELETE", f"/{asked.job}?forget=1")
        assert status == 204 and (await device.ask("GET", f"/{asked.job}"))[0] == 404
        assert {path.name for path in (kept / "files").iterdir()} <= other.files.keys()
        assert (await device.state(other)).stage == "receiving"
        await device.ask("DELETE", f"/{other.job}?forget=1")
        assert not kept.exists()


async def test_a_device_that_would_fill_the_disk_is_told_that_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(tmp_path / "network")
    monkeypatch.setattr(folders, "MAX_DEVICE", 1000)
    async with site(tmp_path / "cloudd") as url:
        status, data = await Device(url).ask("PUT", f"/{asked.job}", asked.body)
        assert status == 507 and b"1000 are allowed" in data


def test_devices_take_turns_whatever_one_of_them_asks_for() -> None:
    ready = {
        Key(device, str(number)): JobRecord(service=f"{number}", stage="waiting", created_at=at)
        for number, (device, at) in enumerate([("A", 1.0), ("A", 2.0), ("B", 9.0), ("C", 5.0)])
    }
    served: dict[str, float] = {}
    order = []
    for now in range(1, 5):
        key = whose_turn(ready, served)
        assert key is not None
        order.append((key.device, ready.pop(key).created_at))
        served[key.device] = float(now)
    assert order == [("A", 1.0), ("C", 5.0), ("B", 9.0), ("A", 2.0)]
    assert whose_turn(ready, served) is None
