"""`edged install` and `uninstall` on a root directory of their own: exactly what is placed is removed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import install as installer
from edged.cli.main import main
from edged.install import MARK, PRODUCTS, InstallError, install, uninstall

BIN = Path("/opt/edged/bin")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system image: the folders that every one has, and a file of the administrator's."""
    for folder in ("usr/local/lib", "etc/systemd/system", "var/lib", "var/spool", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/hostname").write_text("line-3\n")
    return tmp_path


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() if path.is_file() else "" for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize("name", ["edged", "cloudd"])
def test_uninstall_leaves_what_was_there_before(root: Path, name: str) -> None:
    before = tree(root)
    said: list[str] = []
    install(PRODUCTS[name], root, BIN, say=said.append)
    units = root / "usr/local/lib/systemd/system"
    assert {path.name for path in units.iterdir()} == set(PRODUCTS[name].units)
    assert f"ExecStart=/opt/edged/bin/{name} run" in (units / f"{name}.service").read_text()
    assert (units / f"{name}.service").read_text().startswith(MARK)
    assert (units / f"{name}.service").stat().st_mode & 0o777 == 0o644
    assert (root / f"usr/local/lib/sysusers.d/{name}.conf").is_file()
    assert f"installed  /usr/local/lib/systemd/system/{name}.service" in said
    assert said[-1].startswith(f"Start it with: systemctl enable --now {name}")
    uninstall(PRODUCTS[name], root, say=said.append)
    assert tree(root) == before


def test_both_daemons_share_a_root(root: Path) -> None:
    before = tree(root)
    for product in PRODUCTS.values():
        install(product, root, BIN, say=lambda _: None)
    uninstall(PRODUCTS["edged"], root, say=lambda _: None)
    assert (root / "usr/local/lib/systemd/system/cloudd.service").is_file()
    assert not (root / "usr/local/lib/systemd/system/edged.service").exists()
    uninstall(PRODUCTS["cloudd"], root, say=lambda _: None)
    assert tree(root) == before


def test_the_place_of_the_program_is_written_into_the_unit(root: Path) -> None:
    install(PRODUCTS["edged"], root, Path("/srv/apps/venv/bin"), say=lambda _: None)
    text = (root / "usr/local/lib/systemd/system/edged.service").read_text()
    assert "ExecStart=/srv/apps/venv/bin/edged run" in text
    assert "/opt/edged/bin/edged run" not in text


def test_again_changes_nothing_and_an_update_is_written(root: Path) -> None:
    install(PRODUCTS["edged"], root, BIN, say=lambda _: None)
    before = tree(root)
    said: list[str] = []
    install(PRODUCTS["edged"], root, BIN, say=said.append)
    assert tree(root) == before
    assert all(line.startswith("unchanged") for line in said[:-1])
    install(PRODUCTS["edged"], root, Path("/opt/other/bin"), say=said.append)
    assert "installed  /usr/local/lib/systemd/system/edged.service" in said


def test_uninstall_twice_or_before_install_is_no_error(root: Path) -> None:
    before = tree(root)
    uninstall(PRODUCTS["edged"], root, say=lambda _: None)
    uninstall(PRODUCTS["edged"], root, purge=True, say=lambda _: None)
    assert tree(root) == before


def with_data(root: Path) -> None:
    (root / "var/lib/edged/identity").mkdir(parents=True)
    (root / "var/lib/edged/identity/key.pem").write_text("key")
    (root / "etc/edged").mkdir()
    (root / "etc/edged/edged.toml").write_text("")
    (root / "etc/systemd/system/edged.service.d").mkdir()
    (root / "etc/systemd/system/edged.service.d/override.conf").write_text("[Service]\n")


def test_data_and_drop_ins_stay_unless_purged(root: Path) -> None:
    before = tree(root)
    with_data(root)
    kept = tree(root)
    install(PRODUCTS["edged"], root, BIN, say=lambda _: None)
    uninstall(PRODUCTS["edged"], root, say=lambda _: None)
    assert tree(root) == kept
    uninstall(PRODUCTS["edged"], root, purge=True, say=lambda _: None)
    assert tree(root) == before


def test_purge_does_not_follow_a_link(root: Path) -> None:
    (root / "precious").mkdir()
    (root / "var/lib/edged").symlink_to(root / "precious")
    with pytest.raises(InstallError, match="symbolic link"):
        uninstall(PRODUCTS["edged"], root, purge=True, say=lambda _: None)
    assert (root / "precious").is_dir()


@pytest.mark.parametrize("as_link", [False, True])
def test_a_file_of_somebody_else_is_neither_replaced_nor_removed(root: Path, as_link: bool) -> None:
    place = root / "usr/local/lib/systemd/system/edged.socket"
    place.parent.mkdir(parents=True)
    if as_link:
        place.symlink_to("/dev/null")  # masked
    else:
        place.write_text("[Socket]\nListenStream=1\n")
    before = tree(root)
    with pytest.raises(InstallError, match="was not placed by edged"):
        install(PRODUCTS["edged"], root, BIN)
    with pytest.raises(InstallError, match="was not placed by edged"):
        uninstall(PRODUCTS["edged"], root)
    assert tree(root) == before


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("/home/anna/.venv/bin", "hidden from system services"),
        ("/root/venv/bin", "hidden from system services"),
        ("/tmp/venv/bin", "hidden from system services"),
        ("/opt/my venv/bin", "plainer path"),
        ("/opt/100%/bin", "plainer path"),
    ],
)
def test_programs_that_the_unit_could_not_run_are_refused(root: Path, prefix: str, message: str) -> None:
    before = tree(root)
    with pytest.raises(InstallError, match=message):
        install(PRODUCTS["edged"], root, Path(prefix))
    assert tree(root) == before


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.os, "geteuid", lambda: 0)
    with pytest.raises(InstallError, match="/opt/nowhere/bin/edged is not there; name the directory"):
        install(PRODUCTS["edged"], Path("/"), Path("/opt/nowhere/bin"))


def test_the_running_system_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.os, "geteuid", lambda: 1000)
    for action in (install, uninstall):
        with pytest.raises(InstallError, match="sudo"):
            action(PRODUCTS["edged"])


def test_an_installed_package_finds_its_units_beside_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "share/edged/systemd"
    shared.mkdir(parents=True)
    (shared / "edged.service").write_text("[Service]\n")
    monkeypatch.setattr(installer, "__file__", str(tmp_path / "lib/edged/install.py"))
    monkeypatch.setattr(installer.sys, "prefix", str(tmp_path))
    assert installer.source_directory() == shared
    (shared / "edged.service").unlink()
    with pytest.raises(InstallError, match="has no unit files"):
        installer.source_directory()


def test_the_verbs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(root)
    assert main(["install", "--root", str(root), "--prefix", "/opt/edged/bin"]) == 0
    assert (
        "Start it with: systemctl enable --now edged-page.socket edged.socket edged.service" in capsys.readouterr().out
    )
    assert main(["uninstall", "--root", str(root)]) == 0
    assert tree(root) == before
    assert main(["install", "cloudd", "--root", str(root), "--prefix", "/home/me/bin"]) == 1
    assert "hidden from system services" in capsys.readouterr().err
