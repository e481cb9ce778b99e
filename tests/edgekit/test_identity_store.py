"""The identity directory under power cuts, damage and wrong input; and atomic files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.atomic import write_file
from edgekit.identity import Authority, IdentityError, IdentityStore, generate_key, make_csr

INSTALL = """
import sys, time
from pathlib import Path
from edgekit.identity import Authority, IdentityStore, make_csr
root = Path(sys.argv[1])
store, authority = IdentityStore(root / "identity"), Authority.load(root / "authority")
store.install(authority.sign_csr(make_csr(store.key), time.time())[0], authority.certificate_pem)
print("done")
"""


REPOSITORY = Path(__file__).parents[2]


def _install(root: Path, crash_at: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", INSTALL, str(root)],
        env={**os.environ, "EDGED_CRASH_AT": crash_at, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    ).returncode


@pytest.mark.parametrize("point", ["identity.written", "identity.swapped"])
def test_a_power_cut_leaves_the_old_identity_or_the_new_one(tmp_path: Path, point: str) -> None:
    Authority.open(tmp_path / "authority", "plant", time.time())
    assert _install(tmp_path, point) == -9, "the crash point is reached"
    store = IdentityStore(tmp_path / "identity")
    first = store.current()
    assert (first is None) == (point == "identity.written")
    if first is not None:
        assert first.device_id == store.device_id

    assert _install(tmp_path, "") == 0
    second = store.current()
    assert second is not None
    assert second.device_id == store.device_id, "the device keeps its id over crashes"
    assert _install(tmp_path, point) == -9
    third = store.current()
    assert third is not None
    assert (third.certificate == second.certificate) == (point == "identity.written")


def test_renewal_keeps_the_last_set_and_removes_older_ones(tmp_path: Path) -> None:
    authority, store = Authority.create("plant", time.time()), IdentityStore(tmp_path)
    (tmp_path / ".new-left").mkdir()
    sets = [
        store.install(authority.sign_csr(make_csr(store.key), time.time())[0], authority.certificate_pem)
        for _ in range(4)
    ]
    current = store.current()
    assert current is not None
    assert current.directory == sets[-1].directory
    assert [s.directory.exists() for s in sets] == [False, False, True, True]
    assert not (tmp_path / ".new-left").exists()
    assert current.key_path.stat().st_mode & 0o777 == 0o600
    assert current.authority_fingerprint == authority.fingerprint
    assert current.not_before < time.time() < current.not_after


def test_what_does_not_belong_together_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    authority, other = Authority.create("plant", time.time()), Authority.create("plant", time.time())
    store = IdentityStore(tmp_path)
    store.install(authority.sign_csr(make_csr(store.key), time.time())[0], authority.certificate_pem)
    before = store.current()
    with pytest.raises(IdentityError, match="another key"):
        store.install(authority.sign_csr(make_csr(generate_key()), time.time())[0], authority.certificate_pem)
    with pytest.raises(IdentityError, match="not issued by"):
        store.install(authority.sign_csr(make_csr(store.key), time.time())[0], other.certificate_pem)
    assert store.current() == before


def test_damage_is_reported_with_a_remedy(tmp_path: Path) -> None:
    authority, store = Authority.create("plant", time.time()), IdentityStore(tmp_path)
    assert store.current() is None
    identity = store.install(authority.sign_csr(make_csr(store.key), time.time())[0], authority.certificate_pem)
    identity.certificate_path.write_bytes(b"\x00" * 400)
    with pytest.raises(IdentityError, match="join again"):
        store.current()
    identity.certificate_path.unlink()
    with pytest.raises(IdentityError, match="join again"):
        store.current()


def test_a_written_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_file(path, b"one")
    write_file(path, b"two", 0o644)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError):
        write_file(tmp_path / "f", b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
