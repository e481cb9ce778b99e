"""The planner benchmark's rows and goals, and the link that its real rows go over."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.link_shaper import LinkShaper
from benchmarks.planner import simulated, verdict
from benchmarks.planner_shaped import SlowEdge
from edgekit.planning.simulation import Cell


def cell(**changes: object) -> Cell:
    values: dict[str, object] = {
        "net": "mobilenet-v2",
        "mbit": 50.0,
        "rtt_ms": 10.0,
        "k": 5.0,
        "slow": 8.0,
        "may_leave": "features",
        "cascade": False,
        "chosen": "split@block2",
        "best": "split@block2",
        "planner_regret": 0.0,
        "split_speedup": 1.6,
        "replans": 0,
    }
    return Cell(**(values | changes))  # type: ignore[arg-type]


def shaped(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "how": "shaped",
        "may_leave": "features",
        "edge_ms": 200.0,
        "mbit": 50.0,
        "planner_regret": 0.01,
        "split_speedup": 1.7,
    }
    return row | changes


def test_cells_are_summed_up_by_network_policy_and_edge() -> None:
    rows = simulated([cell(), cell(mbit=100.0, planner_regret=0.04), cell(slow=1.0, split_speedup=None)])
    assert [(row["slow"], row["cells"], row["regret_max"]) for row in rows] == [(1.0, 1, 0.0), (8.0, 2, 0.04)]
    assert rows[0]["split_speedup"] is None and rows[1]["split_speedup"] == 1.6


def test_the_worst_cell_and_the_worst_row_decide() -> None:
    rows = [*simulated([cell(), cell(mbit=100.0, planner_regret=0.04)]), shaped()]
    found = verdict(rows)
    assert found["planner_regret"] == pytest.approx((0.0 + 0.04 + 0.01) / 3) and found["planner_regret_max"] == 0.04
    assert found["split_speedup"] == 1.6 and found["planner_regret_met"] and found["split_speedup_met"]
    assert not verdict([*rows, shaped(planner_regret=0.06)])["planner_regret_met"]
    assert not verdict([*rows, shaped(split_speedup=1.4)])["split_speedup_met"]


def test_a_planner_that_does_not_split_where_it_should_has_missed_the_goal() -> None:
    assert verdict([shaped(split_speedup=None)])["split_speedup"] == 1.0
    assert not verdict([*simulated([cell(chosen="edge-whole", split_speedup=None)])])["split_speedup_met"]


@pytest.mark.parametrize("changes", [{"mbit": 10.0}, {"may_leave": "raw"}, {"edge_ms": 71.0}])
def test_no_speed_up_is_promised_elsewhere(changes: dict[str, object]) -> None:
    assert verdict([shaped(split_speedup=None, **changes)])["split_speedup"] is None


def test_a_slow_edge_takes_a_known_factor_longer_and_gives_the_same() -> None:
    started = time.monotonic()
    assert SlowEdge(4.0).run(lambda: 7, here_s=0.02) == 7
    assert time.monotonic() - started >= 0.08


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that answers one byte for every 125,000 that it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                got = 0
                with connection:
                    while data := connection.recv(65_536):
                        got += len(data)
                        while got >= 125_000:
                            got -= 125_000
                            connection.sendall(b"!")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_a_shaped_link_takes_its_time_for_bytes_and_for_the_round_trip(echo: int) -> None:
    link = LinkShaper("127.0.0.1", echo, mbit=20.0, rtt_ms=30.0)
    try:
        with socket.create_connection(("127.0.0.1", link.port), timeout=10) as connection:
            for mbit, rtt_ms in ((20.0, 30.0), (100.0, 5.0)):
                link.set(mbit, rtt_ms)
                wanted = 125_000 * 8e-6 / mbit + rtt_ms / 1e3
                times = []
                for _ in range(3):
                    started = time.monotonic()
                    connection.sendall(bytes(125_000))
                    assert connection.recv(1) == b"!"
                    times.append(time.monotonic() - started)
                assert wanted <= min(times) < wanted + 0.03
    finally:
        link.close()
