"""Configuration, directories, health list and restart policy: the small pure parts."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from edged import config
from edged.config import Address, ConfigError, Flags
from edged.health import MAX_ITEMS, Health
from edged.shortpath import short_path
from edged.sockets import listen_unix
from edged.status.server import allowed_hosts, is_loopback
from edged.tally import Tally
from edged.worker import CRASHES, PEACE_S, SLOW_DELAY_S, RestartPolicy, describe_exit
from edgekit.messages import ServiceReport


def test_everything_has_a_default(tmp_path: Path) -> None:
    settings = config.load(Flags(state=str(tmp_path)), {})
    assert (str(settings.inference), str(settings.page)) == ("127.0.0.1:8700", "127.0.0.1:8701")
    assert (settings.name, settings.name_is_given) == (socket.gethostname(), False)
    assert settings.discover and settings.cloud_url == ""
    assert settings.socket_path == tmp_path / "run" / "edged.sock"
    assert settings.spool_quota == 1 << 30
    assert settings.allow_paths == [tmp_path / "outputs", Path("/var/spool/edged")]
    assert settings.allow_hosts == []


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_text(
        'name = "file"\nthreads = 2\n[inference]\naddress = "[::1]:1"\n[page]\nhosts = ["a.example"]\n'
        '[cloud]\nurl = "10.0.0.5"\ndiscover = false\nallow_paths = ["/srv/x"]\n[spool]\nquota_mb = 5\nreserve_mb = 6\n'
    )
    settings = config.load(Flags(state=str(tmp_path)), {})
    assert (settings.name, settings.name_is_given) == ("file", True)
    assert (settings.name, settings.threads, settings.discover) == ("file", 2, False)
    assert settings.inference == Address("::1", 1) and str(settings.inference) == "[::1]:1"
    assert settings.cloud_url == "https://10.0.0.5:8440" and settings.allow_paths == [Path("/srv/x")]
    assert (settings.spool_quota, settings.spool_reserve) == (5 << 20, 6 << 20)
    flags = Flags(state=str(tmp_path), name="flag", inference="0.0.0.0:9", cloud_url="", discover=True, threads=0)
    settings = config.load(flags, {})
    assert (settings.name, settings.threads, settings.discover) == ("flag", 0, True)
    assert settings.inference == Address("0.0.0.0", 9) and settings.cloud_url == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[infrence]\n", ("infrence", "inference")),
        ('[inference]\naddress = "8700"\n', ("inference.address", "127.0.0.1:8700")),
        ('[page]\naddress = "1.2.3.4:99999"\n', ("page.address",)),
        ('[page]\naddress = "::1:80"\n', ("page.address",)),
        ('[cloud]\nurl = "http://x"\n', ("cloud.url", "https")),
        ("[spool]\nquota_mb = 0\n", ("spool.quota_mb",)),
        ("threads = -1\n", ("threads",)),
        ('[cloud]\nallow_paths = ["srv"]\n', ("cloud.allow_paths", "absolute")),
        ("name = \n", ("TOML",)),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "edged.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(Flags(state=str(tmp_path)), {})
    for word in ("edged.toml", *words):
        assert word in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(Flags(state=str(tmp_path), config=str(tmp_path / "x.toml")), {})


def test_directories_of_the_service_manager(tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/edged", "RUNTIME_DIRECTORY": "/run/edged",
               "CONFIGURATION_DIRECTORY": str(tmp_path)}  # fmt: skip
    (tmp_path / "edged.toml").write_text('name = "etc"\n')
    settings = config.load(Flags(), environ)
    assert settings.state_dir == Path("/var/lib/edged")
    assert settings.socket_path == Path("/run/edged/edged.sock")
    assert settings.name == "etc"
    assert config.state_dir(None, {"EDGED_STATE": "/e", "STATE_DIRECTORY": "/s"}) == Path("/e")
    assert config.state_dir("/f", {"EDGED_STATE": "/e"}) == Path("/f")
    assert config.state_dir(None, {}, root=True) == Path("/var/lib/edged")


def test_where_a_client_looks() -> None:
    assert config.socket_candidates("/x", {}) == [Path("/x/run/edged.sock")]
    assert config.socket_candidates(None, {})[0] == Path("/run/edged/edged.sock")
    assert config.socket_candidates("/var/lib/edged", {})[0] == Path("/run/edged/edged.sock")


def test_a_socket_in_a_directory_with_a_long_name(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    path = directory / "edged.sock"
    path.write_text("a dead daemon's")
    with listen_unix(path), short_path(path) as name, socket.socket(socket.AF_UNIX) as client:
        assert path.stat().st_mode & 0o777 == 0o660
        client.connect(name)


def test_health_is_logged_when_it_comes_and_when_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [100.0]
    health = Health(lambda: now[0])
    health.report("link", "warning", "no link: refused")
    now[0] = 200.0
    health.report("link", "warning", "no link: timeout")
    health.report("disk", "error", "the disk is full")
    assert [(item.code, item.text, item.since) for item in health.items()] == [
        ("disk", "the disk is full", 200.0),
        ("link", "no link: timeout", 100.0),
    ]
    assert health.state().verdict == "Needs attention: the disk is full (and 1 more)"
    health.report("disk", "ok", "there is room again")
    health.clear("link")
    health.clear("link")
    assert [record.message for record in caplog.records] == [
        "no link: refused",
        "the disk is full",
        "there is room again",
        "Over: no link: timeout",
    ]
    assert health.state().level == "ok" and health.state().verdict == "Everything works."
    assert [event.code for event in health.state().events] == ["link", "disk", "disk", "link"]


def test_a_warning_that_becomes_an_error_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    health.report("a", "warning", "soon")
    health.report("a", "error", "now")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_the_health_list_is_bounded() -> None:
    health = Health()
    for number in range(10 * MAX_ITEMS):
        health.report(f"code{number}", "warning", "x")
    assert len(health.items()) == MAX_ITEMS and len(health.state().events) == 20
    health.clear_prefix("code", {"code3"})
    assert [item.code for item in health.items()] == ["code3"]


def test_restarts_are_quick_then_slow_and_forgive() -> None:
    policy = RestartPolicy()
    now, delays = 1000.0, []
    for _ in range(10):
        delays.append(policy.crashed(now))
        now += delays[-1] + 0.1
    assert delays[:6] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0] and delays[-1] == SLOW_DELAY_S
    assert policy.looping(now)
    assert not policy.looping(now + PEACE_S + 1)
    assert policy.crashed(now + PEACE_S + 1) == 0.0
    policy = RestartPolicy()
    assert [policy.looping(policy.crashed(0.0)) for _ in range(CRASHES)] == [False] * (CRASHES - 1) + [True]
    policy.forget()
    assert policy.crashed(1.0) == 0.0


def test_exits_in_words() -> None:
    assert (describe_exit(3), describe_exit(-9), describe_exit(-99)) == ("exit status 3", "signal SIGKILL", "signal 99")


def test_who_can_reach_a_page() -> None:
    assert is_loopback(Address("127.0.0.1", 1)) and is_loopback(Address("::1", 1))
    assert not is_loopback(Address("0.0.0.0", 1)) and not is_loopback(Address("10.0.0.5", 1))
    assert "10.0.0.5" in allowed_hosts(Address("10.0.0.5", 1), [])
    assert "0.0.0.0" not in allowed_hosts(Address("0.0.0.0", 1), []) and "x" in allowed_hosts(Address("::", 1), ["x"])


def test_counters_outlive_workers_and_leave_with_their_service() -> None:
    tally = Tally()
    first = ServiceReport(name="a", model="m", state="ready", inspected=3, edge=2, cloud=1, labels={"x": 2, "y": 1},
                          errors=1, latency_counts=[2, 1], latency_sum_ms=3.0, last_at=9.0)  # fmt: skip
    tally.retire([first], 10)
    tally.retire([first], 5)
    now = ServiceReport(name="a", model="m2", state="ready", inspected=1, degraded=1, labels={"z": 1}, p99_ms=4.0)
    total = tally.total(now)
    assert (total.inspected, total.edge, total.cloud, total.degraded) == (7, 4, 2, 1)
    assert total.labels == {"x": 4, "y": 2, "z": 1}
    assert (total.errors, total.latency_counts, total.latency_sum_ms, total.last_at) == (2, [4, 2], 6.0, 9.0)
    assert (total.model, total.p99_ms, tally.uplink_bytes) == ("m2", 4.0, 15)
    tally.forget(["b"])
    assert tally.total(now) == now
