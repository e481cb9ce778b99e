"""The shipped units: systemd accepts them, they expose little, and each directive says why it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SHIPPED = Path(__file__).resolve().parents[2] / "systemd"
UNITS = sorted(path.name for path in SHIPPED.iterdir() if path.suffix in (".service", ".socket"))
SERVICES = [name for name in UNITS if name.endswith(".service")]
CONFIGS = sorted(str(path.relative_to(SHIPPED)) for path in SHIPPED.glob("*.d/*.conf"))

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=120, check=False)


def value(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (SHIPPED / unit).read_text(), re.MULTILINE)


def test_the_units_that_the_daemons_need_are_there() -> None:
    assert UNITS == ["cloudd.service", "cloudd.socket", "edged-page.socket", "edged.service", "edged.socket"]
    assert CONFIGS == ["sysusers.d/cloudd.conf", "sysusers.d/edged.conf", "tmpfiles.d/edged.conf"]


@needs_analyze
def test_systemd_accepts_them_without_a_word(tmp_path: Path) -> None:
    for name in UNITS:
        text = (SHIPPED / name).read_text().replace("/opt/edged/bin/", f"{tmp_path}/")
        (tmp_path / name).write_text(text)
    for program in ("edged", "cloudd"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    done = analyze("verify", "--man=no", *(str(tmp_path / name) for name in UNITS))
    complaints = [line for line in done.stderr.splitlines() if "edged" in line or "cloudd" in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


@needs_analyze
@pytest.mark.parametrize("service", SERVICES)
def test_the_exposure_is_at_most_1_5(service: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=15", str(SHIPPED / service))
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_users_and_groups_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    files = [str(SHIPPED / name) for name in CONFIGS if name.startswith("sysusers.d")]
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", *files], capture_output=True, timeout=60, check=True)
    passwd = (tmp_path / "etc/passwd").read_text()
    group = (tmp_path / "etc/group").read_text()
    assert re.search(r"^edged:.*:/var/lib/edged:/usr/sbin/nologin$", passwd, re.MULTILINE)
    assert re.search(r"^cloudd:.*:/var/lib/cloudd:/usr/sbin/nologin$", passwd, re.MULTILINE)
    for name in ("video", "render"):  # made where they are missing, so that the unit starts on any system
        assert re.search(rf"^{name}:.*:edged$", group, re.MULTILINE)


@pytest.mark.parametrize("name", [*UNITS, *CONFIGS])
def test_every_directive_has_its_reason(name: str) -> None:
    """A comment stands above each directive, or above the short block of directives that share it."""
    block = 0
    commented = False
    for number, line in enumerate((SHIPPED / name).read_text().splitlines(), 1):
        if line.startswith("#"):
            commented, block = True, 0
        elif not line.strip() or line.startswith("["):
            commented = False
        else:
            if line.startswith("Description="):
                continue  # says itself what it is
            block += 1
            assert commented, f"{name}:{number} has no comment: {line}"
            assert block <= 6, f"{name}:{number}: one comment for more than six directives"


@pytest.mark.parametrize("service", SERVICES)
def test_what_the_daemons_rely_on(service: str) -> None:
    name = service.removesuffix(".service")
    assert value(service, "Type") == ["notify"]
    assert value(service, "WatchdogSec") == ["60"]
    assert value(service, "StateDirectory") == value(service, "RuntimeDirectory") == value(service, "User") == [name]
    assert value(service, "ExecStart") == [f"/opt/edged/bin/{name} run"]
    assert "ORT_DISABLE_TELEMETRY=1" in value(service, "Environment")
    assert "OPENCV_IO_MAX_IMAGE_PIXELS=33554432" in value(service, "Environment")
    sockets = [unit for unit in UNITS if unit.endswith(".socket") and unit.startswith(name)]
    assert sorted(value(service, "Requires")[0].split()) == sockets  # a socket that is not required may be missing
    assert sorted(value(service, "Also")[0].split()) == sockets
    assert set(sockets) <= set(value(service, "After")[0].split())


def test_sockets_have_the_names_that_the_daemons_look_for() -> None:
    sockets = {
        unit: (value(unit, "ListenStream"), value(unit, "FileDescriptorName")) for unit in UNITS if "socket" in unit
    }
    assert sockets == {
        "edged.socket": (["127.0.0.1:8700"], ["inference"]),
        "edged-page.socket": (["127.0.0.1:8701"], ["page"]),
        "cloudd.socket": (["0.0.0.0:8440"], ["device"]),
    }
