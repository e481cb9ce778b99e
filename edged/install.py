"""Puts the systemd units of edged (or cloudd) in their places, and takes exactly those out again.

The units come with the program. They go to /usr/local/lib, the place for software that no package manager put there, so
that /etc stays the administrator's: drop-ins there survive an update. A file of the same name that lacks our mark is
somebody else's, and is neither replaced nor removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgekit import atomic

MARK = "# Placed by `edged install`, removed by `edged uninstall`. Changes made here are lost with the next update.\n"
PACKAGED_BIN = "/opt/edged/bin"
"""Where the shipped units expect the programs; `install` writes the real place instead."""
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  # what ProtectHome= and PrivateTmp= hide
_TOOL_TIMEOUT_S = 60


class InstallError(RuntimeError):
    """It cannot be done; the message says why and what to do."""


class Product(NamedTuple):
    """What one daemon needs to be a system service."""

    name: str
    units: tuple[str, ...]  # the service first
    directories: tuple[str, ...]  # that --purge removes; relative to the root

    @property
    def files(self) -> dict[str, str]:
        """Shipped file -> place, both relative. sysusers.d and tmpfiles.d files are named after the daemon."""
        return {unit: f"usr/local/lib/systemd/system/{unit}" for unit in self.units} | {
            f"{kind}/{self.name}.conf": f"usr/local/lib/{kind}/{self.name}.conf"
            for kind in ("sysusers.d", "tmpfiles.d")
        }


PRODUCTS = {
    product.name: product
    for product in (
        Product(
            "edged",
            ("edged.service", "edged.socket", "edged-page.socket"),
            ("var/lib/edged", "var/spool/edged", "run/edged", "etc/edged", "etc/credstore.encrypted/edged.kek"),
        ),
        Product("cloudd", ("cloudd.service", "cloudd.socket"), ("var/lib/cloudd", "run/cloudd", "etc/cloudd")),
    )
}


def source_directory() -> Path:
    """The shipped unit files: in the source checkout, else where the package installed them. Raises InstallError."""
    checkout = Path(__file__).resolve().parent.parent / "systemd"
    for candidate in (checkout, Path(sys.prefix) / "share" / "edged" / "systemd"):
        if (candidate / "edged.service").is_file():
            return candidate
    raise InstallError("this installation has no unit files; install the package again, with pip, into an environment")


def program_directory() -> Path:
    """Where `edged` and `cloudd` of the running installation lie: beside its Python."""
    return Path(sys.executable).absolute().parent


def install(
    product: Product,
    root: Path = Path("/"),
    prefix: Path | None = None,
    start: bool = False,
    source: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Place the files of `product` below `root`, with the program in the directory `prefix`. Idempotent.

    On the running system (root is / and systemd is PID 1) it also makes the user and directories and reloads systemd;
    with `start` it enables and starts the service. Raises InstallError.
    """
    prefix = (prefix or program_directory()).absolute()
    live = _is_live(root)
    _check_rights(root)
    _check_program(product, root, prefix)
    shipped = source or source_directory()
    texts = {
        place: _text(shipped / file, prefix) for file, place in product.files.items() if (shipped / file).is_file()
    }
    for place in texts:  # before the first change
        _check_ours(root / place)
    for place, text in texts.items():
        target = root / place
        if target.is_file() and target.read_text() == text:
            say(f"unchanged  /{place}")
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_file(target, text.encode(), 0o644)
        except OSError as error:
            raise InstallError(f"cannot write {target}: {error.strerror or error}") from error
        say(f"installed  /{place}")
    enable = f"systemctl enable --now {' '.join(reversed(product.units))}"
    if live:
        _tool(say, "systemd-sysusers", f"{product.name}.conf")
        if f"usr/local/lib/tmpfiles.d/{product.name}.conf" in texts:
            _tool(say, "systemd-tmpfiles", "--create", f"{product.name}.conf")
        _tool(say, "systemctl", "daemon-reload")
        if start:
            _tool(say, *enable.split())
            return
    elif root == Path("/"):
        say("systemd does not run here, so nothing was started; the files serve the next boot with systemd.")
    say(f"Start it with: {enable}")


def uninstall(
    product: Product, root: Path = Path("/"), purge: bool = False, say: Callable[[str], None] = print
) -> None:
    """Stop the service and remove what `install` placed. With `purge` also its data, configuration and user.

    Data stays otherwise: it holds the device's identity and samples that wait for the link. Raises InstallError.
    """
    live = _is_live(root)
    _check_rights(root)
    places = list(product.files.values())
    for place in places:
        _check_ours(root / place)
    if live and any((root / place).exists() for place in places):
        _tool(say, "systemctl", "disable", "--now", *product.units)
    for place in places:
        target = root / place
        if target.exists():
            _remove(target)
            say(f"removed    /{place}")
            _remove_empty_parents(target.parent, root)
    if live:
        _tool(say, "systemctl", "daemon-reload")
    if purge:
        _purge(product, root, live, say)


def _purge(product: Product, root: Path, live: bool, say: Callable[[str], None]) -> None:
    drop_ins = [f"etc/systemd/system/{unit}.d" for unit in product.units]
    for place in (*product.directories, *drop_ins):
        target = root / place
        if target.is_symlink():
            raise InstallError(f"{target} is a symbolic link; remove by hand what it points to, and then the link")
        if target.exists():
            _remove(target)
            say(f"removed    /{place}")
    if live and shutil.which("userdel") and _user_exists(product.name):
        _tool(say, "userdel", product.name)


def _is_live(root: Path) -> bool:
    """True on the running system with systemd as its manager: sd_booted(3)."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _check_rights(root: Path) -> None:
    if root == Path("/") and os.geteuid() != 0:
        raise InstallError("system services belong to root; run it with sudo")


def _check_program(product: Product, root: Path, prefix: Path) -> None:
    """The unit's sandbox must be able to see the program, and so must this machine if it is the one to run it."""
    if any(prefix.is_relative_to(hidden) for hidden in _HIDDEN):
        raise InstallError(
            f"{prefix} is hidden from system services; install the program outside of home directories, for example: "
            "python3 -m venv /opt/edged && /opt/edged/bin/pip install 'edged-cloudd[serve]'"
        )
    if any(character.isspace() or character in "%$\\\"'" for character in str(prefix)):
        raise InstallError(f"{prefix} has a character that unit files give a meaning; choose a plainer path")
    program = prefix / product.name
    if root == Path("/") and not os.access(program, os.X_OK):
        raise InstallError(f"{program} is not there; name the directory of the programs with --prefix")


def _text(file: Path, prefix: Path) -> str:
    return MARK + file.read_text().replace(f"={PACKAGED_BIN}/", f"={prefix}/")


def _check_ours(target: Path) -> None:
    """Raise InstallError if something that we did not place has this name."""
    try:
        if target.is_symlink() or (target.exists() and not target.read_text().startswith(MARK)):
            raise InstallError(f"{target} was not placed by edged; move it away first")
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(f"{target} cannot be read: {error}") from error


def _remove(target: Path) -> None:
    try:
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
    except OSError as error:
        raise InstallError(f"cannot remove {target}: {error.strerror or error}") from error


def _remove_empty_parents(folder: Path, root: Path) -> None:
    """Folders below usr/local/lib that `install` may have made; one that holds anything else stays."""
    while folder not in (root, root / "usr/local/lib"):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _user_exists(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _tool(say: Callable[[str], None], *command: str) -> None:
    """Run one of systemd's tools. Raises InstallError with its words if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except FileNotFoundError:
        say(f"skipped    {' '.join(command)} (not installed here)")
        return
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(command)} did not end within {_TOOL_TIMEOUT_S} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise InstallError(f"{' '.join(command)} failed: {words}")
    say(f"ran        {' '.join(command)}")
