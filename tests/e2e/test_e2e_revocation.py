"""A device that is locked out: at once, in words, and without a consequence for its line."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from edgekit.identity import client_context
from tests.support.edged import wait_for
from tests.support.stage import EASY, Plant, Template, assert_whole


def status_of(plant: Plant, method: str, path: str) -> tuple[int, str]:
    """What cloudd answers to a request with the device's certificate."""
    identity = plant.edge.state_dir / "identity" / "current"
    context = client_context(identity / "authority.pem", identity / "certificate.pem", identity / "key.pem")
    where = urlsplit(plant.cloud.url)
    connection = http.client.HTTPSConnection(str(where.hostname), where.port, context=context, timeout=20)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, str(json.loads(reply.read()).get("error", ""))
    finally:
        connection.close()


def told(plant: Plant) -> bool:
    """The health list and the link's detail say that cloudd has locked this device out."""
    status = plant.edge.status()
    items = {item.code: item for item in status.health.items}
    return "link.refused" in items and "revoked" in items["link.refused"].text and "revoked" in status.cloud.detail


def test_a_revoked_device_is_locked_out_and_works_on_and_restoring_it_heals_everything(template: Template) -> None:
    with Plant(template) as plant:
        plant.start()
        worker = plant.worker_pid
        wait_for(lambda: plant.send().decided == "cloud")

        revoked = plant.cloud.command("devices", "revoke", "line-1", "--reason", "sold")
        assert revoked.returncode == 0 and "is locked out" in revoked.stdout
        plant.edge.wait_for_link(False, 10.0)
        plant.edge.wait_for(lambda: told(plant), "to say so")
        shown = plant.edge.command("status")
        assert shown.returncode in (0, 1) and "revoked" in shown.stdout and "restore" in shown.stdout
        for method, path in (("POST", "/v1/answers"), ("GET", "/v1/control"), ("GET", "/v1/models/large")):
            status, text = status_of(plant, method, path)
            assert status == 403 and text.startswith("this device was revoked")
        (device,) = plant.cloud.client.get("/devices")
        assert device["revoked"] and not device["online"]

        # The line goes on, and what it would have asked waits.
        decisions = [plant.send() for _ in range(5)]
        for decision in decisions:
            assert decision.decided == "edge-degraded" and decision.spooled and decision.label == decision.edge.label
        assert plant.send("solder", EASY).decided == "edge"
        assert plant.worker_pid == worker
        answered = plant.arrived()
        assert not {decision.sample_id for decision in decisions} & answered.keys()

        # A token does not undo a revocation: the same key stays out, and the sentence says what would.
        again = plant.edge.command("join", plant.cloud.invite("line-1"), "--url", plant.cloud.url)
        assert again.returncode == 1 and "revoked" in again.stderr and "cloudd devices restore" in again.stderr
        assert len(plant.cloud.client.get("/devices")) == 1
        assert plant.send("solder", EASY).decided == "edge"

        # Taking the revocation back does. The device looks again by itself in a quarter of an hour, or at a restart.
        restored = plant.cloud.command("devices", "restore", "line-1")
        assert restored.returncode == 0, restored.stderr
        again = plant.edge.command("join", plant.cloud.invite("line-1"), "--url", plant.cloud.url)
        assert again.returncode == 0, again.stderr
        plant.wait_for_link()
        plant.wait_drained()
        arrived = plant.arrived()
        assert {decision.sample_id for decision in decisions} <= arrived.keys() and set(arrived.values()) == {1}
        assert not told(plant)
        assert_whole(plant.edge, plant.cloud)


def test_a_revoked_device_with_a_new_identity_is_a_new_device(template: Template) -> None:
    """Who may touch the device's files can make it another device; the old one stays locked out in the list."""
    with Plant(template) as plant:
        plant.start()
        old = plant.edge.status().device_id
        plant.cloud.command("devices", "revoke", "line-1")
        plant.edge.wait_for_link(False, 10.0)
        plant.edge.stop()
        for path in sorted((plant.edge.state_dir / "identity").rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        plant.edge.start()
        new = plant.edge.status().device_id
        assert new != old and not plant.edge.status().cloud.joined
        joined = plant.edge.command("join", plant.cloud.invite("line-1b"), "--url", plant.cloud.url)
        assert joined.returncode == 0, joined.stderr
        plant.wait_for_link()
        wait_for(lambda: plant.send().decided == "cloud")
        fleet = {device["device_id"]: device["revoked"] for device in plant.cloud.client.get("/devices")}
        assert fleet == {old: True, new: False}


def test_a_revocation_holds_over_a_restart_of_both(template: Template) -> None:
    with Plant(template) as plant:
        plant.start()
        plant.cloud.command("devices", "revoke", "line-1")
        plant.edge.wait_for_link(False, 10.0)
        plant.kill_edge()
        plant.cloud.kill()
        plant.cloud.start()
        plant.edge.start()
        plant.edge.wait_for(lambda: told(plant), "to say so")
        assert not plant.edge.status().cloud.up
        assert plant.send("solder", EASY).decided == "edge"
        assert plant.send().spooled
