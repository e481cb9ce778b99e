"""The `[[outputs]]` table of a service definition: where decisions go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from edgekit import toml

PLACEHOLDERS = ("service", "label", "decided", "serial")
"""What a topic may have in braces; each is a text of the Decision."""
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
MAX_TOPIC = 512
"""Characters of a topic template."""

Text = Annotated[str, Meta(max_length=1024)]


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """Where decisions go.

    `jsonl` appends one Decision a line to the file `path`, `csv` one row. `webhook` posts each Decision to `url`,
    `mqtt` publishes it. Secrets are files, never part of the definition.
    """

    kind: Literal["jsonl", "csv", "webhook", "mqtt"] = "jsonl"
    path: Text = ""  # jsonl, csv: absolute; a .csv file for csv and for nothing else
    max_mb: Annotated[float, Meta(ge=0.0, le=1_000_000.0)] = 0.0  # jsonl, csv: rotated beyond; 0: never
    keep: Annotated[int, Meta(ge=1, le=1000)] = 5  # jsonl, csv: rotated files that stay
    url: Text = ""  # webhook: http(s)://...; mqtt: mqtt(s)://host[:port]
    timeout_s: Annotated[float, Meta(ge=0.1, le=120.0)] = 10.0  # webhook, mqtt: of one request or connection
    ca_file: Text = ""  # webhook, mqtt: who may have signed the server's certificate; else the system's authorities
    authorization: Text = ""  # webhook: file with the value of the Authorization header
    secret: Text = ""  # webhook: file with the key of the signature
    topic: Annotated[str, Meta(max_length=MAX_TOPIC)] = "edged/{service}/decisions"  # mqtt
    status_topic: Annotated[str, Meta(max_length=MAX_TOPIC)] = "edged/{service}/status"  # mqtt; "": none
    qos: Literal[0, 1] = 1  # mqtt
    retain: bool = False  # mqtt: the broker keeps the newest decision of each topic
    credentials: Text = ""  # mqtt: file with USER:PASSWORD
    certificate: Text = ""  # mqtt: client certificate, PEM
    key: Text = ""  # mqtt: its private key, PEM
    queue_mb: Annotated[float, Meta(ge=1.0, le=65_536.0)] = 64.0  # webhook, mqtt: most that waits on the disk
    queue_rows: Annotated[int, Meta(ge=100, le=10_000_000)] = 100_000


FILES = ("jsonl", "csv")
NETWORK = ("webhook", "mqtt")

_KINDS: dict[str, tuple[str, ...]] = {
    "path": FILES,
    "max_mb": FILES,
    "keep": FILES,
    "url": NETWORK,
    "timeout_s": NETWORK,
    "ca_file": NETWORK,
    "authorization": ("webhook",),
    "secret": ("webhook",),
    "topic": ("mqtt",),
    "status_topic": ("mqtt",),
    "qos": ("mqtt",),
    "retain": ("mqtt",),
    "credentials": ("mqtt",),
    "certificate": ("mqtt",),
    "key": ("mqtt",),
    "queue_mb": NETWORK,
    "queue_rows": NETWORK,
}
_SCHEMES = {"webhook": ("https", "http"), "mqtt": ("mqtts", "mqtt")}
_FILE_KEYS = ("path", "ca_file", "authorization", "secret", "credentials", "certificate", "key")
_DEFAULT = Output()


def named_files(output: Output) -> dict[str, str]:
    """Every file that an output names, by key: results, and what is read for the network."""
    return {key: path for key in _FILE_KEYS if (path := getattr(output, key))}


def destination(output: Output) -> tuple[str, int]:
    """Host and port of a network output that `check_outputs` found good."""
    parts = urlsplit(output.url)
    port = {"https": 443, "http": 80, "mqtts": 8883, "mqtt": 1883}[parts.scheme]
    return parts.hostname or "", parts.port or port


def check_outputs(outputs: Sequence[Output]) -> None:
    """The rules that a type cannot say. Raises TomlError."""
    seen: set[tuple[str, str]] = set()
    for index, output in enumerate(outputs):
        where = f"outputs[{index}]"
        _check_keys(where, output)
        if output.kind in FILES:
            _check_file(where, output)
        else:
            _check_network(where, output)
            if (output.url, output.topic) in seen:
                advice = "an output before it has the same destination"
                raise toml.TomlError(f'"{where}.url" is {toml.show(output.url)}', advice)
            seen.add((output.url, output.topic))


def _check_keys(where: str, output: Output) -> None:
    for key, kinds in _KINDS.items():
        if output.kind not in kinds and getattr(output, key) != getattr(_DEFAULT, key):
            only = " or ".join(f'"{kind}"' for kind in kinds)
            raise toml.TomlError(f'"{where}.{key}" is set', f"it belongs to kind = {only} only")
    for key, path in named_files(output).items():
        _check_path(f"{where}.{key}", path)


def _check_file(where: str, output: Output) -> None:
    if not output.path:
        raise toml.TomlError(f'"{where}.path" is missing', 'an absolute path without ".." belongs there')
    # Two services may share a file, but not with different content, and neither sees the other's definition.
    if (output.kind == "csv") != output.path.lower().endswith(".csv"):
        advice = "the file of kind csv, and no other, has a name that ends in .csv"
        raise toml.TomlError(f'"{where}.path" is {toml.show(output.path)}', advice)


def _check_network(where: str, output: Output) -> None:
    if not output.url:
        schemes = " or ".join(f"{scheme}://..." for scheme in _SCHEMES[output.kind])
        raise toml.TomlError(f'"{where}.url" is missing', f"{schemes} belongs there")
    _check_url(f"{where}.url", output)
    if output.kind == "mqtt":
        _check_topic(f"{where}.topic", output.topic, PLACEHOLDERS)
        if output.status_topic:
            _check_topic(f"{where}.status_topic", output.status_topic, PLACEHOLDERS[:1])
    if bool(output.certificate) != bool(output.key):
        raise toml.TomlError(f'"{where}.certificate" and "{where}.key" belong together', "set both or neither")
    secure = output.url.lower().startswith(("https:", "mqtts:"))
    for key in ("ca_file", "certificate"):
        if not secure and getattr(output, key):
            raise toml.TomlError(f'"{where}.{key}" is set', f"it needs {_SCHEMES[output.kind][0]}://")


def _check_url(key: str, output: Output) -> None:
    """Nothing that is not printable ASCII: the URL goes to foreign parsers, and into messages."""
    url, schemes = output.url, _SCHEMES[output.kind]
    if "@" in url.partition("//")[2].partition("/")[0]:  # before anything that would show it
        advice = {
            "webhook": "put the Authorization header into a file and name that in authorization",
            "mqtt": "put USER:PASSWORD into a file and name that in credentials",
        }
        raise toml.TomlError(f'"{key}" has a user in it', advice[output.kind])
    example = "https://10.0.0.9/decisions" if output.kind == "webhook" else "mqtts://10.0.0.9"
    wanted = toml.TomlError(f'"{key}" is {toml.show(url)}', f"a URL like {example} belongs there")
    if not all("!" <= character <= "~" for character in url):
        raise wanted
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.fragment:
        raise wanted
    if output.kind == "mqtt" and (parts.path not in ("", "/") or parts.query):
        raise wanted


def _check_topic(key: str, topic: str, known: Sequence[str]) -> None:
    rest = PLACEHOLDER.sub("", topic)
    strange = [name for name in PLACEHOLDER.findall(topic) if name not in known]
    if strange:
        raise toml.TomlError(
            f'"{key}" has {toml.show("{" + strange[0] + "}")}',
            f"known are {', '.join(f'{{{name}}}' for name in known)}",
        )
    if not topic or topic.startswith("$") or any(c in "{}+#" or not c.isprintable() for c in rest):
        raise toml.TomlError(
            f'"{key}" is {toml.show(topic)}', "a topic belongs there, without + # and without $ at its beginning"
        )


def _check_path(key: str, path: str) -> None:
    """A worker runs in an empty directory, so a relative path would mean nothing to it."""
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise toml.TomlError(f'"{key}" is {toml.show(path)}', 'an absolute path without ".." belongs there')
