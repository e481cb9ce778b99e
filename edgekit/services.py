"""The service definition: what a user wants to run, as one strict TOML file.

    name = "solder"
    model = "solder-small"            # newest installed version, or "solder-small@1.2.0"

    [hard_samples]
    answer_model = "solder-large"     # what cloudd answers with

Everything else has a default. An unknown key, a wrong type or a value out of range is an error that names the key and
what is allowed; nothing is guessed and nothing is ignored.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit import toml
from edgekit.packages.manifest import PackageError, split_ref

MAX_SERVICE = 65_536
"""Bytes of one service definition."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAME_RULE = "use 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit"

Text = Annotated[str, Meta(max_length=1024)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class ServiceError(ValueError):
    """The service definition cannot be used; the message says which key, why, and what is allowed."""


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table in a service definition."""


class Source(_Table, frozen=True, kw_only=True):
    """Where pictures come from. `http`: clients post them to /v1/services/NAME/inspect, and nothing else is needed."""

    kind: Literal["http", "folder"] = "http"
    path: Text = ""  # folder only, absolute
    pattern: Text = "*"  # shell pattern for file names in the folder
    after: Literal["keep", "move", "delete"] = "move"  # what happens to a file once its decision is durable
    settle_ms: Annotated[float, Meta(ge=0.0, le=60_000.0)] = 200.0  # a file unchanged for this long is complete


class HardSamples(_Table, frozen=True, kw_only=True):
    """Which samples the cloud is asked about.

    `risk`: at most a share `risk` of the answers trusted at the edge differs from the cloud's, with `confidence`.
    `budget`: the hardest share `budget` of the samples is sent. `off`: none.
    """

    mode: Literal["risk", "budget", "off"] = "risk"
    risk: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.02
    confidence: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.9
    budget: Share = 0.3
    answer_model: Text = ""  # name, or name@version, of the model on cloudd; needed unless mode is off
    calibration: Annotated[int, Meta(ge=20, le=1_000_000)] = 1000  # samples wanted before a certificate
    audit_share: Share = 0.03  # of the trusted samples, sent in the background to keep the certificate honest
    wait_ms: Annotated[float, Meta(ge=0.0, le=600_000.0)] | None = (
        None  # longest wait for the cloud; None: the deadline
    )


class Output(_Table, frozen=True, kw_only=True):
    """Where decisions go. `jsonl`: one Decision per line, appended to the file `path` (absolute)."""

    kind: Literal["jsonl"] = "jsonl"
    path: Text


class Retention(_Table, frozen=True, kw_only=True):
    """How long things are kept."""

    spool_days: Annotated[float, Meta(gt=0.0, le=3650.0)] = 30.0  # samples waiting for the link


class Service(_Table, frozen=True, kw_only=True):
    """One running inspection: a task, a model, a source and its policies."""

    name: str
    task: Literal["classification"] = "classification"
    model: str  # name, or name@version
    priority: Literal["alarm", "inline", "audit"] = "inline"
    deadline_ms: Annotated[float, Meta(gt=0.0, le=600_000.0)] = 300.0
    source: Source = Source()
    # A service without this table asks nobody; one that has the table is calibrated for risk unless it says otherwise.
    hard_samples: HardSamples = HardSamples(mode="off")
    may_leave: Literal["raw", "nothing"] = "raw"
    objective: Literal["latency", "throughput", "efficiency"] = "latency"  # what the device's hardware is chosen for
    outputs: list[Output] = []
    retention: Retention = Retention()


def parse_service(text: str, origin: str) -> Service:
    """Read one definition; `origin` (a file name, "cloudd") appears in every error. Raises ServiceError."""
    name = ""
    try:
        table = toml.read(text.encode("utf-8", "surrogatepass"), MAX_SERVICE)
        name = table["name"] if isinstance(table.get("name"), str) else ""
        if table.get("may_leave") == "features":
            raise toml.TomlError(
                '"may_leave" is "features"', 'that needs split inference and is reserved; use "raw" or "nothing"'
            )
        service = toml.convert(table, Service)
        _check(service)
    except toml.TomlError as error:
        raise ServiceError(error.at(f"service {toml.show(name)} ({origin})" if name else origin)) from None
    except PackageError as error:
        raise ServiceError(f"service {toml.show(name)} ({origin}): {error}") from None
    return service


def dump_service(service: Service) -> str:
    """The definition as TOML text; `parse_service` reads it back to an equal Service."""
    return toml.dump(service)


def _check(service: Service) -> None:
    """Rules that span more than one key, or that a type cannot say. Raises TomlError or PackageError."""
    if not _NAME.fullmatch(service.name):
        raise toml.TomlError(f'"name" is {toml.show(service.name)}', _NAME_RULE)
    split_ref(service.model, key="model")
    hard = service.hard_samples
    if hard.mode != "off":
        if not hard.answer_model:
            raise toml.TomlError(
                '"hard_samples.answer_model" is missing',
                'name the model that cloudd answers with, or set hard_samples.mode = "off"',
            )
        split_ref(hard.answer_model, key="hard_samples.answer_model")
    source = service.source
    if source.kind == "folder":
        _check_path("source.path", source.path)
        if not source.pattern or "/" in source.pattern or "\0" in source.pattern:
            raise toml.TomlError(
                f'"source.pattern" is {toml.show(source.pattern)}', "a file name pattern belongs there"
            )
    elif source.path:
        raise toml.TomlError('"source.path" is set', 'it belongs to source.kind = "folder" only')
    for index, output in enumerate(service.outputs):
        _check_path(f"outputs[{index}].path", output.path)


def _check_path(key: str, path: str) -> None:
    """A worker runs in an empty directory, so a relative path would mean nothing to it."""
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise toml.TomlError(f'"{key}" is {toml.show(path)}', 'an absolute path without ".." belongs there')
