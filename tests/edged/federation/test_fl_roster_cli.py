"""`edged roster`: the plant's word, made without a daemon and without a network."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from edged.cli.main import main
from edged.federation import rosters
from edgekit.identity import IdentityStore, device_id, generate_key
from edgekit.secagg import roster, signatures


def _device(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    IdentityStore(tmp_path / name / "identity")
    capsys.readouterr()
    assert main(["roster", "--state", str(tmp_path / name), "device"]) == 0
    return capsys.readouterr().out.split()


def test_from_the_key_to_a_roster_that_devices_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, draft, out = (str(tmp_path / name) for name in ("north.pem", "north.toml", "north.roster"))
    assert main(["roster", "key", key]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    public = line.split('"')[1]
    assert line.startswith("north = ") and stat.S_IMODE(Path(key).stat().st_mode) == 0o600
    for name in ("a", "b", "c"):
        one = _device(tmp_path, capsys, name)
        assert main(["roster", "add", draft, "--plant", "North works", *one, f"line {name}"]) == 0
    assert main(["roster", "sign", draft, "--key", key, "--days", "30", "--out", out]) == 0
    trusted = {"north": signatures.from_point(bytes.fromhex(public))}
    found = roster.open_rosters([Path(out).read_bytes()], trusted, now=time.time(), floors={})
    assert len(found) == 3
    assert main(["roster", "sign", draft, "--key", key, "--out", out]) == 0
    newer = roster.open_rosters([Path(out).read_bytes()], trusted, now=time.time(), floors=found.floors)
    assert newer.floors["north"].serial == 2
    assert main(["roster", "show", out]) == 0
    assert "serial 2" in capsys.readouterr().out


def test_the_same_key_is_shown_again_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = str(tmp_path / "north.pem")
    assert main(["roster", "key", key]) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    before = Path(key).read_bytes()
    assert main(["roster", "key", key]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first
    assert Path(key).read_bytes() == before


def test_a_passphrase_guards_the_key(tmp_path: Path) -> None:
    path = tmp_path / "north.pem"
    public = rosters.new_key(path, b"correct horse")
    assert rosters.public_text(rosters.open_key(path, lambda: b"correct horse")) == public
    with pytest.raises(rosters.RosterError, match="passphrase"):
        rosters.open_key(path, lambda: b"wrong")


def test_an_id_that_is_not_the_keys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = generate_key(), generate_key()
    wrong = [device_id(one.public_key()), signatures.point(other.public_key()).hex()]
    assert main(["roster", "add", str(tmp_path / "d.toml"), "--plant", "p", *wrong]) == 1
    assert "is not that of the device" in capsys.readouterr().err
    assert not (tmp_path / "d.toml").exists()


def test_a_device_leaves_the_draft_by_the_beginning_of_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = str(tmp_path / "d.toml")
    one = _device(tmp_path, capsys, "a")
    assert main(["roster", "add", draft, "--plant", "p", *one]) == 0
    assert main(["roster", "remove", draft, one[0][:9].lower()]) == 0
    assert rosters.read_draft(Path(draft)).member == []
    assert main(["roster", "remove", draft, one[0][:9]]) == 1


def test_an_empty_draft_and_an_endless_roster_are_not_signed() -> None:
    key = generate_key()
    with pytest.raises(rosters.RosterError, match="no member"):
        rosters.sign(rosters.Draft(plant="p"), key, now=0.0, days=1)
    with pytest.raises(rosters.RosterError, match="days"):
        rosters.sign(rosters.Draft(plant="p"), key, now=0.0, days=1e9)


@pytest.mark.parametrize("data", [b"{", b'{"body": 1}', b"\xff\xfe{}", b'{"body":"","signature":""}'])
def test_what_is_no_roster_is_refused(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.roster"
    path.write_bytes(data)
    assert main(["roster", "show", str(path)]) == 1
    assert "x.roster" in (error := capsys.readouterr().err) or "no signed roster" in error
