"""The admin socket: who may use it, and refusals that say what to do."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudd.client import AdminClient, ClientError
from tests.support.cloud import Cloud, FakeDevice
from tests.support.models import make_package


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


def refused(cloud: Cloud, method: str, route: str, body: object = None) -> ClientError:
    with pytest.raises(ClientError) as caught:
        cloud.admin.get(route) if method == "GET" else cloud.admin.post(route, body)
    return caught.value


def test_files_are_private(cloud: Cloud) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(cloud.state / "run" / "cloudd.sock") == 0o660
    assert mode(cloud.state / "authority" / "root-key.pem") == 0o600
    assert mode(cloud.state / "authority" / "server-key.pem") == 0o600
    assert mode(cloud.state / "page-token") == 0o600
    assert mode(cloud.state / "cloudd.db") == 0o600


def test_status(cloud: Cloud) -> None:
    status = cloud.admin.get("/status")
    assert status["about"] == cloud.about
    assert status["health"] == "ok" and status["totals"]["devices"] >= 0


def test_an_invitation_is_shown_once_and_stored_as_a_hash(cloud: Cloud) -> None:
    made = cloud.admin.post("/invites", {"name": "press", "ttl_s": 60})
    secret = made["token"].rpartition(".")[2]
    assert made["command"] == f"edged join {made['token']} --url {cloud.url}"
    kept = b"".join(path.read_bytes() for path in cloud.state.glob("cloudd.db*"))
    assert made["token_id"].encode() in kept and secret.encode() not in kept
    assert secret not in cloud.log.read_text()


@pytest.mark.parametrize("body", [{"ttl_s": 0}, {"ttl_s": 1e9}, {"ttl_s": "1h"}, {"name": "x" * 100}, []])
def test_wrong_invitations(cloud: Cloud, body: object) -> None:
    assert refused(cloud, "POST", "/invites", body).status == 400


async def test_devices_are_found_as_people_write_them(cloud: Cloud, tmp_path: Path) -> None:
    first, second = FakeDevice(tmp_path / "1", name="twin"), FakeDevice(tmp_path / "2", name="twin")
    for device in (first, second):
        await device.enroll(cloud, cloud.invite())
    for text in (first.id, first.id.lower().replace("-", "%20"), first.id.split("-")[0]):
        assert cloud.admin.get(f"/devices/{text}")["device"]["device_id"] == first.id
    twins = refused(cloud, "GET", "/devices/twin")
    assert twins.status == 409 and first.id.split("-")[0] in str(twins)
    assert "devices list" in str(refused(cloud, "GET", "/devices/nobody"))
    assert refused(cloud, "POST", "/devices/nobody/desired", {"services": []}).status == 404


def test_models(cloud: Cloud, tmp_path: Path) -> None:
    package = make_package(tmp_path / "model", "large", "1")
    entry = cloud.admin.post("/models", {"path": str(tmp_path / "model")})
    assert entry["digest"] == package.digest
    assert cloud.admin.get("/models/large@1") == cloud.admin.get("/models/large") == entry
    assert [one["name"] for one in cloud.admin.get("/models")] == ["large"]
    make_package(tmp_path / "changed", "large", "1", sharpness=10.0)
    assert refused(cloud, "POST", "/models", {"path": str(tmp_path / "changed")}).status == 409
    (tmp_path / "model" / "package.toml").write_text("schema = 2")
    assert refused(cloud, "POST", "/models", {"path": str(tmp_path / "model")}).status == 422
    assert refused(cloud, "POST", "/models", {"path": str(tmp_path / "nowhere")}).status == 422
    assert refused(cloud, "POST", "/models", {"path": "relative"}).status == 400
    assert refused(cloud, "GET", "/models/none").status == 404
    assert refused(cloud, "GET", "/models/..%2Fetc").status == 400


def test_answers_that_are_not_there(cloud: Cloud) -> None:
    assert cloud.admin.get("/answers?limit=5") == []
    assert refused(cloud, "GET", "/answers/1").status == 404
    assert refused(cloud, "GET", "/answers/1/picture").status == 404
    assert refused(cloud, "GET", "/answers/x").status == 400
    assert refused(cloud, "GET", "/answers?limit=-1").status == 400


def test_a_daemon_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="not running here") as caught:
        AdminClient(tmp_path / "cloudd.sock").get("/status")
    assert caught.value.status == 0
