"""What a definition of cloudd's may say about outputs: only where the site lets decisions, and secrets, go."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.desired import check_desired

HOOK = 'name = "a"\nmodel = "m"\n[[outputs]]\nkind = "webhook"\nurl = "{url}"\n'


@pytest.mark.parametrize(
    ("url", "hosts", "good"),
    [
        ("https://mes.plant/x", [], False),
        ("https://mes.plant/x", ["mes.plant"], True),
        ("https://MES.plant:8443/x", ["Mes.Plant"], True),
        ("https://mes.plant:8443/x", ["mes.plant:443"], False),
        ("https://mes.plant/x", ["mes.plant:443"], True),
        ("https://mes.plant.evil.example/", ["mes.plant"], False),
        ("https://evil.example/mes.plant", ["mes.plant"], False),
        ("http://[fd00::1]:81/", ["[fd00::1]:81"], True),
        ("http://[fd00::1]:81/", ["fd00::1"], True),
    ],
)
def test_receivers_of_clouds_definitions(url: str, hosts: list[str], good: bool) -> None:
    wanted, problems = check_desired([HOOK.format(url=url)], "cloudd", [], hosts)
    assert bool(wanted) == good and bool(problems) != good
    if not good:
        assert "allow_hosts" in problems[0] and '"outputs[0].url"' in problems[0]


@pytest.mark.parametrize("key", ["ca_file", "authorization", "secret"])
def test_secrets_of_the_device_cannot_be_sent_away(tmp_path: Path, key: str) -> None:
    text = HOOK.format(url="https://mes.plant/") + f'{key} = "/var/lib/edged/keys/kek"\n'
    wanted, (problem,) = check_desired([text], "cloudd", [tmp_path], ["mes.plant"])
    assert not wanted and f'"outputs[0].{key}"' in problem
    assert check_desired([text.replace("/var/lib/edged/keys", str(tmp_path))], "cloudd", [tmp_path], ["mes.plant"])[0]
