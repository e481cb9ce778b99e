"""Where things are and how the daemon is set up: directories, `edged.toml` and the flags of `edged run`.

    name = "line-3"                     # what people call this device; default: as it joined, or the host name
    threads = 0                         # model threads, 0 = all CPUs the daemon may use

    [inference]
    address = "127.0.0.1:8700"

    [page]
    address = "127.0.0.1:8701"
    hosts = ["line3.plant.example"]     # further names the page may be reached under

    [cloud]
    url = "https://10.0.0.5:8440"       # only where discovery is forbidden
    discover = true
    allow_paths = ["/srv/line-3"]       # what cloudd's services may name; default: STATE/outputs, /var/spool/edged
    allow_hosts = ["mes.plant:443"]     # where their webhooks and MQTT outputs may send; default: nowhere

    [spool]
    quota_mb = 1024                     # hard samples waiting for the link
    reserve_mb = 256                    # disk space the spool leaves free

    [adapt]
    mode = "background"                 # measure how each model runs best here; "never": all in the safe way

    [federation]                        # with this table the device may learn together with others
    enabled = true                      # every other key and the plants' keys: edged.federation.settings

    [dispatch]                          # with this table the cloud also helps when more comes than can be done here
    offload_above = { inline = 0.5 }    # and every other number of edgekit.dispatch.policy; read again on SIGHUP

Everything has a default, so the file is optional. Flags win over the file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edged.link.address import cloud_url
from edged.link.errors import LinkError
from edgekit import toml
from edgekit.dispatch.policy import DispatchPolicy
from edgekit.runtimes.libraries import ROADS, road

if TYPE_CHECKING:
    from edged.federation.settings import Federation

MAX_CONFIG = 65_536
"""Bytes of edged.toml."""
MAX_THREADS = 1024
SYSTEM_STATE = Path("/var/lib/edged")
SYSTEM_RUNTIME = Path("/run/edged")
SPOOL_FOLDER = Path("/var/spool/edged")
"""Where systemd's unit lets cameras drop pictures and the daemon write results."""
SOCKET_NAME = "edged.sock"

Megabytes = Annotated[int, Meta(ge=1, le=16_777_216)]
AdaptMode = Literal["background", "never"]


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key, why and what is allowed."""


class Address(NamedTuple):
    """A TCP address to listen on. Port 0 is any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table in edged.toml."""


class InferenceConfig(_Table, frozen=True, kw_only=True):
    address: str = "127.0.0.1:8700"


class PageConfig(_Table, frozen=True, kw_only=True):
    address: str = "127.0.0.1:8701"
    hosts: list[Annotated[str, Meta(min_length=1, max_length=253)]] = []


class CloudConfig(_Table, frozen=True, kw_only=True):
    url: Annotated[str, Meta(max_length=1024)] = ""
    discover: bool = True
    allow_paths: list[Annotated[str, Meta(min_length=1, max_length=1024)]] | None = None
    allow_hosts: list[Annotated[str, Meta(min_length=1, max_length=300)]] = []


class SpoolConfig(_Table, frozen=True, kw_only=True):
    quota_mb: Megabytes = 1024
    reserve_mb: Megabytes = 256


class AdaptConfig(_Table, frozen=True, kw_only=True):
    mode: AdaptMode = "background"
    interpreters: dict[str, str] = {}  # runtime/provider -> Python of an environment that has it


class Config(_Table, frozen=True, kw_only=True):
    """The content of edged.toml."""

    name: Annotated[str, Meta(max_length=64)] = ""
    threads: Annotated[int, Meta(ge=0, le=MAX_THREADS)] = 0
    inference: InferenceConfig = InferenceConfig()
    page: PageConfig = PageConfig()
    cloud: CloudConfig = CloudConfig()
    spool: SpoolConfig = SpoolConfig()
    adapt: AdaptConfig = AdaptConfig()
    dispatch: DispatchPolicy | None = None  # None: what cannot be done here in time is refused


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `edged run` works with: the file, the flags over it, and the directories."""

    state_dir: Path
    runtime_dir: Path
    config_path: Path
    name: str
    name_is_given: bool  # by a person; else it is the host name
    threads: int
    inference: Address
    page: Address
    page_hosts: list[str]
    cloud_url: str
    discover: bool
    allow_paths: list[Path]  # below which a service of cloudd's may watch and write
    allow_hosts: list[str]  # to which its outputs may send
    spool_quota: int  # bytes
    spool_reserve: int  # bytes
    adapt: AdaptMode = "background"
    interpreters: dict[tuple[str, str], str] = {}  # (runtime, provider) -> path
    dispatch: DispatchPolicy | None = None
    federation: Federation | None = None  # None: it takes part in no federated job

    @property
    def socket_path(self) -> Path:
        """The local API."""
        return self.runtime_dir / SOCKET_NAME


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `edged run`; None means: as the file says."""

    state: str | None = None
    config: str | None = None
    name: str | None = None
    inference: str | None = None
    page: str | None = None
    cloud_url: str | None = None
    discover: bool | None = None
    threads: int | None = None
    adapt: bool | None = None


def state_dir(flag: str | None = None, environ: Mapping[str, str] = os.environ, root: bool | None = None) -> Path:
    """`--state`, else $EDGED_STATE, else $STATE_DIRECTORY, else /var/lib/edged for root and ~/.local/state/edged."""
    named = flag or environ.get("EDGED_STATE") or environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if named:
        return Path(named).expanduser().absolute()
    is_root = os.geteuid() == 0 if root is None else root
    return SYSTEM_STATE if is_root else Path("~/.local/state/edged").expanduser()


def socket_candidates(flag: str | None = None, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where a client looks for the local API, best first. Without a name the system's daemon is tried first."""
    if flag or environ.get("EDGED_STATE"):
        named = state_dir(flag, environ)
        first = [SYSTEM_RUNTIME] if named == SYSTEM_STATE else []
        return [directory / SOCKET_NAME for directory in [*first, named / "run"]]
    directories = [SYSTEM_RUNTIME, SYSTEM_STATE / "run", state_dir(None, {}, root=False) / "run"]
    return [directory / SOCKET_NAME for directory in directories]


def load(flags: Flags, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read edged.toml (if there is one) and put the flags over it. Raises ConfigError."""
    state = state_dir(flags.state, environ)
    path = _config_path(flags, environ, state)
    try:
        config, federation = read_config(path)
        runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        name = (flags.name if flags.name is not None else config.name).strip()
        return Settings(
            state_dir=state,
            runtime_dir=Path(runtime) if runtime else state / "run",
            config_path=path,
            name=name or socket.gethostname(),
            name_is_given=bool(name),
            threads=flags.threads if flags.threads is not None else config.threads,
            inference=parse_address(flags.inference or config.inference.address, "inference.address"),
            page=parse_address(flags.page or config.page.address, "page.address"),
            page_hosts=list(config.page.hosts),
            cloud_url=_cloud_url(flags.cloud_url if flags.cloud_url is not None else config.cloud.url),
            discover=flags.discover if flags.discover is not None else config.cloud.discover,
            allow_paths=_allowed(config.cloud.allow_paths, state),
            allow_hosts=config.cloud.allow_hosts,
            spool_quota=config.spool.quota_mb << 20,
            spool_reserve=config.spool.reserve_mb << 20,
            adapt=config.adapt.mode if flags.adapt is None else "background" if flags.adapt else "never",
            interpreters=_interpreters(config.adapt.interpreters),
            dispatch=config.dispatch,
            federation=federation,
        )
    except toml.TomlError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def read_config(path: Path) -> tuple[Config, Federation | None]:
    """The file's content and its `[federation]`; defaults if there is no file. Raises toml.TomlError or OSError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
    except FileNotFoundError:
        return Config(), None
    table = toml.read(data, MAX_CONFIG)
    federation = table.pop("federation", None)
    return toml.convert(table, Config), None if federation is None else _federation(federation)


def parse_address(text: str, key: str) -> Address:
    """Split "host:port" or "[v6]:port". Raises toml.TomlError naming `key`."""
    host, colon, port = text.rpartition(":")
    host = host.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise toml.TomlError(
            f'"{key}" is {toml.show(text)}, but an address like "127.0.0.1:8700" belongs there (port 0 = any free one)'
        )
    return Address(host, int(port))


def _federation(table: object) -> Federation:
    from edged.federation.settings import read_federation  # most devices have no such table, and memory is counted

    return read_federation(table)


def _cloud_url(text: str) -> str:
    try:
        return cloud_url(text) if text.strip() else ""
    except LinkError as error:
        raise toml.TomlError(f'"cloud.url": {error}') from None


def _allowed(given: list[str] | None, state: Path) -> list[Path]:
    if given is None:
        return [state / "outputs", SPOOL_FOLDER]
    for path in given:
        if not path.startswith("/") or "\0" in path or ".." in Path(path).parts:
            raise toml.TomlError(
                f'"cloud.allow_paths" has {toml.show(path)}', 'absolute paths without ".." belong there'
            )
    return [Path(path) for path in given]


def _interpreters(table: Mapping[str, str]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for name, path in table.items():
        runtime, slash, provider = name.partition("/")
        if not slash or road(runtime, provider) is None:
            known = ", ".join(f"{one.runtime}/{one.provider}" for one in ROADS)
            raise toml.TomlError(f'"adapt.interpreters" names {toml.show(name)}', f"known are {known}")
        if not path.startswith("/"):
            raise toml.TomlError(
                f'"adapt.interpreters.{name}" is {toml.show(path)}', "the absolute path of a Python belongs there"
            )
        found[runtime, provider] = path
    return found


def _config_path(flags: Flags, environ: Mapping[str, str], state: Path) -> Path:
    if flags.config:
        path = Path(flags.config).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"the configuration file {path} does not exist")
        return path
    directory = environ.get("CONFIGURATION_DIRECTORY", "").partition(":")[0]
    return (Path(directory) if directory else state) / "edged.toml"
