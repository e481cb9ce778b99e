"""Settings of cloudd: built-in defaults, then cloudd.toml, then flags; and where its files are."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgekit import toml

DEFAULT_LISTEN = "0.0.0.0:8440"
DEFAULT_DASHBOARD = "127.0.0.1:8441"
SOCKET_NAME = "cloudd.sock"
SYSTEM_STATE = Path("/var/lib/cloudd")
DEFAULT_TTL_S = 3600.0
MAX_TTL_S = 30 * 86_400.0
"""Seconds that a join token may live."""
MAX_NAME = 64
"""Characters of the name of a cloudd or a device."""
_MAX_FILE = 65_536
_MAX_SOCKET_PATH = 107  # bytes, sockaddr_un


class ConfigError(ValueError):
    """A setting cannot be used; the text names it and says what is allowed."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set in cloudd.toml; each key also has a flag."""

    name: Annotated[str, Meta(max_length=MAX_NAME)] = ""  # what people call this cloudd; the host name if empty
    listen: str = DEFAULT_LISTEN  # device API, address:port; port 0 takes any free one
    dashboard: str = DEFAULT_DASHBOARD  # the page; loopback only, because it has no TLS
    database: str = ""  # URL; empty: SQLite in the state directory
    blobs: str = ""  # URL or directory of the object store; empty: a directory in the state directory
    advertise: bool = True  # DNS-SD, so that devices on the LAN find it
    names: list[str] = []  # further host names and addresses for the server certificate
    heartbeat_s: Annotated[float, Meta(ge=0.2, le=300.0)] = 10.0  # devices report at least this often
    answer_workers: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that run the large models
    # Of computing for one model that a device asks to be retrained; 0: none is.
    retraining_hours: Annotated[float, Meta(ge=0.0, le=168.0)] = 4.0


def load(path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from an optional file and from flags (None: not given). Raises ConfigError or OSError."""
    table: dict[str, Any] = {}
    try:
        if path is not None:
            table = toml.read(path.read_bytes(), _MAX_FILE)
        table |= {key: value for key, value in flags.items() if value is not None}
        settings = toml.convert(table, Settings)
    except toml.TomlError as error:
        raise ConfigError(f"{path or 'settings'}: {error}") from None
    split_address(settings.listen, "listen")
    host, _ = split_address(settings.dashboard, "dashboard")
    if not _is_loopback(host):
        raise ConfigError(
            f"dashboard = {settings.dashboard!r}: the dashboard has no TLS and listens on loopback only; "
            "to see it from elsewhere use `ssh -L 8441:127.0.0.1:8441 HOST` or a reverse proxy on this host"
        )
    if not settings.name:
        settings = msgspec.structs.replace(settings, name=socket.gethostname()[:MAX_NAME] or "cloudd")
    return settings


def split_address(text: str, key: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (address, port). Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ConfigError(f"{key} = {text!r}: write it as ADDRESS:PORT, for example {DEFAULT_LISTEN}")
    host = {"localhost": "127.0.0.1", "": "0.0.0.0", "*": "0.0.0.0"}.get(host, host)  # noqa: S104  # asked for
    try:
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        raise ConfigError(f"{key} = {text!r}: {host!r} is not an IP address of this host") from None


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where cloudd keeps everything: systemd's choice, /var/lib/cloudd for root, else the user's state directory."""
    if given := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_STATE
    base = environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "cloudd"


def runtime_dir(state: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the daemon puts its socket. Raises ConfigError if the path is too long for one."""
    given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    directory = Path(given) if given else state / "run"
    if len(os.fsencode(directory / SOCKET_NAME)) > _MAX_SOCKET_PATH:
        raise ConfigError(f"{directory} is too long a path for a unix socket; choose a shorter --state directory")
    return directory


def find_socket(state: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The admin socket a command should use: of the given state directory, else the first that exists."""
    if state is not None and state != SYSTEM_STATE:
        return state / "run" / SOCKET_NAME
    if state is not None:  # the system service has its socket in /run, one started by hand beside its state
        candidates = [Path("/run/cloudd") / SOCKET_NAME, state / "run" / SOCKET_NAME]
        return next((path for path in candidates if path.exists()), candidates[0])
    candidates = [runtime_dir(default_state_dir(environ), environ) / SOCKET_NAME, Path("/run/cloudd") / SOCKET_NAME]
    return next((path for path in candidates if path.exists()), candidates[0])


def find_config(given: Path | None, state: Path) -> Path | None:
    """The configuration file: the given one, else cloudd.toml in the state directory or in /etc/cloudd, else none."""
    if given is not None:
        return given
    candidates = (state / "cloudd.toml", Path("/etc/cloudd/cloudd.toml"))
    return next((path for path in candidates if path.is_file()), None)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback
