"""`[dispatch]` of edged.toml in a real daemon: read again on SIGHUP, by the worker that runs."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged import config
from edged.config import ConfigError, Flags
from edgekit.dispatch.policy import DispatchPolicy, Shares
from tests.support.edged import Edged, wait_for
from tests.support.models import make_package, picture

SERVICE = """
name = "solder"
model = "slow"
priority = "audit"
deadline_ms = 300
[hard_samples]
mode = "off"
answer_model = "large"
"""


def settings(folder: Path, text: str) -> config.Settings:
    (folder / "edged.toml").write_text(text)
    return config.load(Flags(state=str(folder)), {})


def test_without_the_table_nothing_leaves_for_want_of_time(tmp_path: Path) -> None:
    assert settings(tmp_path, "").dispatch is None
    assert settings(tmp_path, "[dispatch]\n").dispatch == DispatchPolicy()
    changed = settings(tmp_path, "[dispatch]\noffload_above = { inline = 0.4 }\n").dispatch
    assert changed == DispatchPolicy(offload_above=Shares(inline=0.4))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("offload_over = 1", 'unknown key "dispatch.offload_over"'),
        ("offload_above = { inline = 1.5 }", "offload_above.inline must lie between 0 and 1, not 1.5"),
        ("run_factor = nan", '"dispatch.run_factor" is nan'),
        ('hopeless = { alarm = "spool" }', '"dispatch.hopeless.alarm" is "spool"'),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_key(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"edged\.toml") as caught:
        settings(tmp_path, f"[dispatch]\n{table}\n")
    assert sentence in str(caught.value)


def burst(url: str, count: int = 24) -> Counter[int]:
    """Statuses of so many requests at once."""

    def one(number: int) -> int:
        request = urllib.request.Request(url, picture(0.9, seed=number), {"Content-Type": "image/png"})
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(one, range(count)))


def test_sighup_brings_the_rules_to_the_worker_that_runs(tmp_path: Path) -> None:
    package = make_package(tmp_path / "slow", "slow", work=150).root
    with Edged(tmp_path / "state", "--threads", "1") as edged:
        edged.add_model(package)
        edged.add_service(SERVICE)
        edged.wait_ready("solder")
        worker = edged.status().worker.pid
        url = f"http://{edged.status().addresses.inference}/v1/services/solder/inspect"
        before = burst(url)
        assert before[503] and not before[202]
        (tmp_path / "state" / "edged.toml").write_text("[dispatch]\n")
        edged.process.send_signal(signal.SIGHUP)
        wait_for(lambda: burst(url)[202])
        assert edged.status().worker.pid == worker
        assert not [item for item in edged.status().health.items if item.code == "config"]
