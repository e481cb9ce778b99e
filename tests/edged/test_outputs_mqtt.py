"""MQTT against a real mosquitto: killed and started again, with TLS, with passwords, and hostile labels."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.capture.outputs import network
from edged.capture.outputs.mqtt import topic
from edged.capture.outputs.opening import Outputs
from edgekit.outputs import Output
from edgekit.services import Service
from tests.support.receivers import Events, Mosquitto, decision, make_certificates, mosquitto, until

pytestmark = pytest.mark.skipif(mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "BACKOFF_BASE_S", 0.05)
    monkeypatch.setattr(network, "BACKOFF_CAP_S", 0.2)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(tmp_path / "broker")
    await broker.start()
    yield broker
    await broker.kill()


class Bench:
    def __init__(self, root: Path, port: int, scheme: str = "mqtt", host: str = "127.0.0.1", **options: Any) -> None:
        self.events = Events()
        self.outputs = Outputs(root / "queues", "DEVICE", self.events, lambda: False)
        definition = Output(kind="mqtt", url=f"{scheme}://{host}:{port}", **options)
        (self.output,) = self.outputs.of(Service(name="solder", model="m", outputs=[definition])).values()

    def write(self, *numbers: int, **changes: Any) -> None:
        for number in numbers:
            one = decision(number, **changes)
            self.output.write(one, msgspec.json.encode(one))

    @property
    def report(self) -> Any:
        return self.output.report()


def samples(heard: list[tuple[str, bytes, bool]], where: str = "edged/solder/decisions") -> list[str]:
    return [json.loads(payload)["sample_id"] for topic, payload, _ in heard if topic == where]


def ids(*numbers: int) -> list[str]:
    return [f"SAMPLE{number:06}" for number in numbers]


async def test_decisions_arrive_in_order_under_the_topic(tmp_path: Path, broker: Mosquitto) -> None:
    async with broker.listener("edged/#") as heard:
        bench = Bench(tmp_path, broker.port)
        bench.write(*range(1, 501))
        await until(lambda: bench.report.delivered == 500 and len(samples(heard)) == 500)
        assert samples(heard) == ids(*range(1, 501))
        assert heard[0] == ("edged/solder/status", b"online", False)
        assert (bench.report.waiting, bench.report.dropped) == (0, 0)
        assert bench.report.name == f"mqtt://127.0.0.1:{broker.port} edged/{{service}}/decisions"
        await bench.outputs.close()
        await until(lambda: heard[-1][1] == b"offline")
    assert bench.events == []


async def test_a_broker_that_is_killed_in_the_middle_loses_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    bench = Bench(tmp_path, broker.port)
    first: list[tuple[str, bytes, bool]]
    async with broker.listener("edged/solder/decisions") as first:
        bench.write(*range(1, 101))
        await until(lambda: len(first) >= 50)
        await broker.kill()
        started = time.monotonic()
        bench.write(*range(101, 301))
        assert time.monotonic() - started < 0.05
    await until(lambda: bench.report.failing_since is not None)
    assert bench.report.problem
    await broker.start()
    async with broker.listener("edged/solder/decisions") as second:
        bench.write(*range(301, 401))
        await until(lambda: bench.report.waiting == 0 and samples(second)[-1:] == ids(400))
        await asyncio.sleep(0.1)
    got = samples(second)
    # What came before somebody listened again, the broker has taken nevertheless; what came after is in order.
    assert got == ids(*range(401 - len(got), 401))
    assert bench.report.delivered == 400 and bench.report.failing_since is None
    await bench.outputs.close()


async def test_no_decision_is_lost_for_a_subscriber_with_a_session(tmp_path: Path) -> None:
    """The subscriber's session survives the broker (persistence), so every single decision can be counted."""
    broker = Mosquitto(tmp_path / "broker", persistent=True)
    await broker.start()
    subscribe = broker.session("counter", "edged/solder/decisions")
    await subscribe(0)
    bench = Bench(tmp_path, broker.port)
    for round_ in range(3):
        bench.write(*range(100 * round_ + 1, 100 * round_ + 101))
        await asyncio.sleep(0.15)
        await broker.terminate()
        await asyncio.sleep(0.1)
        await broker.start()
    await until(lambda: bench.report.waiting == 0, 20)
    got = await subscribe(300)
    assert set(got) == set(ids(*range(1, 301)))
    first_seen = list(dict.fromkeys(got))
    assert first_seen == ids(*range(1, 301)), "repeated perhaps, but in order"
    await bench.outputs.close()
    await broker.kill()


async def test_the_will_tells_when_the_device_dies(tmp_path: Path, broker: Mosquitto) -> None:
    script = (
        "import asyncio, sys\n"
        "from tests.edged.test_outputs_mqtt import Bench\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    Bench(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    async with broker.listener("edged/+/status") as heard:
        import sys

        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path), str(broker.port))
        try:
            await until(lambda: heard and heard[-1][1] == b"online", 20)
        finally:
            process.kill()
            await process.wait()
        await until(lambda: heard[-1][1] == b"offline")
    async with broker.listener("edged/+/status") as heard:
        await until(lambda: heard == [("edged/solder/status", b"offline", True)])


async def test_topics_are_made_of_the_decision_and_retained_if_asked(tmp_path: Path, broker: Mosquitto) -> None:
    bench = Bench(
        tmp_path, broker.port, topic="line/{service}/{label}/{decided}/{serial}", status_topic="", retain=True
    )
    bench.write(1, label="no/solder+#\x00", serial="$A 7")
    bench.write(2, label="", serial="ü")
    await until(lambda: bench.report.delivered == 2)
    async with broker.listener("#") as heard:
        await until(lambda: len(heard) == 2)
    assert sorted((topic, retained) for topic, _, retained in heard) == [
        ("line/solder/_/edge/ü", True),
        ("line/solder/no_solder___/edge/$A 7", True),
    ]
    await bench.outputs.close()


async def test_qos_0_is_sent_once(tmp_path: Path, broker: Mosquitto) -> None:
    async with broker.listener("edged/solder/decisions") as heard:
        bench = Bench(tmp_path, broker.port, qos=0)
        bench.write(*range(1, 101))
        await until(lambda: len(heard) == 100)
    assert samples(heard) == ids(*range(1, 101))
    await bench.outputs.close()


async def test_tls_and_passwords_come_from_files(tmp_path: Path) -> None:
    tls, other = make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "other")
    passwords = tmp_path / "passwords"
    passwords.touch(0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "edged", "ge:heim"], check=True, capture_output=True)
    broker = Mosquitto(tmp_path / "broker", tls=tls, password_file=passwords)
    await broker.start()
    credentials = tmp_path / "credentials"
    credentials.write_text("edged:ge:heim\n")
    credentials.chmod(0o644)
    login = {"credentials": str(credentials)}
    bench = Bench(tmp_path / "wrong-ca", broker.port, "mqtts", ca_file=str(other.ca))
    await until(lambda: "certificate" in bench.report.problem.lower())
    await bench.outputs.close()
    bench = Bench(tmp_path / "nobody", broker.port, "mqtts", ca_file=str(tls.ca))
    await until(lambda: "not authori" in bench.report.problem.lower())
    await bench.outputs.close()
    bench = Bench(tmp_path / "good", broker.port, "mqtts", ca_file=str(tls.ca), **login)
    bench.write(1)
    await until(lambda: "chmod o=" in bench.report.problem)
    assert "heim" not in bench.report.problem.replace(str(credentials), "")
    credentials.chmod(0o600)
    await until(lambda: bench.report.delivered == 1)
    await bench.outputs.close()
    bench = Bench(tmp_path / "wrong-name", broker.port, "mqtts", "localhost", ca_file=str(tls.ca), **login)
    await until(lambda: "mismatch" in bench.report.problem.lower() or "not valid for" in bench.report.problem.lower())
    await bench.outputs.close()
    await broker.kill()


async def test_a_broker_that_asks_for_a_certificate_gets_it(tmp_path: Path) -> None:
    tls, other = make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "other")
    broker = Mosquitto(tmp_path / "broker", tls=tls, ask_certificate=True)
    await broker.start()

    def bench(name: str, **files: str) -> Bench:
        one = Bench(tmp_path / name, broker.port, "mqtts", ca_file=str(tls.ca), **files)
        one.write(1)
        return one

    nobody = bench("nobody")
    await until(lambda: "certificate required" in nobody.report.problem)
    await nobody.outputs.close()
    stranger = bench("stranger", certificate=str(other.client), key=str(other.client_key))
    await until(lambda: "unknown ca" in stranger.report.problem)
    await stranger.outputs.close()
    known = bench("known", certificate=str(tls.client), key=str(tls.client_key))
    await until(lambda: known.report.delivered == 1)
    await known.outputs.close()
    tls.client_key.chmod(0o644)
    open_key = bench("open-key", certificate=str(tls.client), key=str(tls.client_key))
    await until(lambda: "chmod o=" in open_key.report.problem)
    await open_key.outputs.close()
    await broker.kill()


async def test_the_next_worker_takes_over_the_connection(tmp_path: Path, broker: Mosquitto) -> None:
    async with broker.listener("edged/#") as heard:
        old = Bench(tmp_path, broker.port)
        old.write(*range(1, 51))
        await until(lambda: old.report.delivered)
        new = Bench(tmp_path, broker.port)
        new.write(*range(51, 101))
        await asyncio.sleep(0.2)
        await old.outputs.close()
        await until(lambda: len(samples(heard)) == 100 and new.report.waiting == 0)
        assert samples(heard) == ids(*range(1, 101))
        assert [payload for where, payload, _ in heard if where.endswith("status")] == [
            b"online",
            b"offline",
            b"online",
        ]
        await new.outputs.close()


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_name_changes_the_structure_of_a_topic(label: str, serial: str) -> None:
    filled = topic("{label}/x/{serial}", {"label": label, "serial": serial})
    assert filled.count("/") == 2 and not filled.startswith("$")
    assert not set("+#\0") & set(filled) and all(filled.split("/"))
    filled.encode("utf-8")
