"""What the definition of a site's job says of the upper job: its file, and what that decides instead of the definition.

`cloudd fl start` puts the job of the file into the text as `upper_job`, so that the definition stands alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from cloudd.federation.errors import FederationError
from edgekit import toml
from edgekit.federated.errors import FederatedError
from edgekit.federated.plan import Plan
from edgekit.federated.tiers import check_site_job, site_plan
from edgekit.identity import IdentityError, parse_device_id
from edgekit.messages.federation import FederatedJob

MAX_FILE = 1 << 17
"""Bytes of a file that `cloudd fl export` wrote."""
_JOB = "upper_job"
_PART = 900
"""Characters of a line: edgekit.toml takes none of more than 4096 bytes."""
_DECIDED = ("rounds", "evaluate_every", "plan", "local", "new_labels", "continues")


def read_job(data: bytes) -> FederatedJob:
    """The content of a file of `cloudd fl export`. Raises FederationError."""
    try:
        if len(data) > MAX_FILE:
            raise FederationError(f"the upper job has more than {MAX_FILE} bytes; `cloudd fl export` writes fewer")
        return msgspec.json.decode(data, type=FederatedJob)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FederationError(f"the upper job cannot be read: {error}; `cloudd fl export JOB FILE` writes it") from None


def composed(definition: str, job: bytes) -> str:
    """A definition that holds the upper job. Raises FederationError."""
    read_job(job)
    text = job.decode()
    parts = [json.dumps(text[start : start + _PART], ensure_ascii=False) for start in range(0, len(text), _PART)]
    listed = ",\n".join(parts).replace("\x7f", "\\u007f")
    return f"{_JOB} = [\n{listed},\n]\n{definition}"


def joined(parts: Sequence[str]) -> FederatedJob | None:
    """The upper job that a definition holds. Raises FederationError."""
    return read_job("".join(parts).encode("utf-8", "surrogatepass")) if parts else None


def fill(table: dict[str, Any]) -> None:
    """Put into the table of a definition what the upper job decides. Raises FederationError."""
    parts = table.get(_JOB, [])
    upper = joined(parts) if isinstance(parts, list) and all(isinstance(one, str) for one in parts) else None
    if upper is None:
        for key in ("upper", "leader"):
            if table.get(key):
                raise FederationError(f"{key} = {toml.show(table[key])}: `cloudd fl start` puts the upper job in")
        return
    written = [key for key in _DECIDED if key in table]
    if written:
        raise FederationError(f"{', '.join(written)}: the upper job decides that for its sites; leave it out")
    if upper.upper is not None:
        raise FederationError("the upper job is a site's job itself; there are two tiers, not three")
    for key in ("service", "model"):
        wanted = getattr(upper, key)
        if table.setdefault(key, wanted) != wanted:
            raise FederationError(f"{key} = {toml.show(table[key])}: the upper job is for {toml.show(wanted)}")
    try:
        table["leader"] = parse_device_id(str(table.get("leader", "")))
    except IdentityError as error:
        raise FederationError(f"leader: the id of the site's leader belongs there ({error})") from None
    try:
        plan = site_plan(msgspec.json.decode(upper.plan, type=Plan))
    except (FederatedError, msgspec.DecodeError) as error:
        raise FederationError(f"the upper job cannot have sites: {error}") from None
    table["plan"], table["local"] = msgspec.to_builtins(plan), msgspec.to_builtins(upper.local)
    table["rounds"], table["evaluate_every"] = upper.rounds, upper.evaluate_every


def check_start(job: FederatedJob) -> None:
    """Whether a site's job is what the upper one asks for. Raises FederationError."""
    upper = job.upper
    if upper is None:
        return
    if (job.model, job.package) != (upper.model, upper.package):
        raise FederationError(
            f"the upper job begins with {upper.model} (SHA-256 of its package.toml {upper.package[:16]}…); here "
            f"{job.model} has {job.package[:16]}…: bring the very package here"
        )
    theirs = {one.path: one.sha256 for one in upper.files}
    other = sorted(one.path for one in job.files if theirs.get(one.path) != one.sha256)
    if other or len(theirs) != len(job.files):
        raise FederationError(
            f"this cloudd derives another train step from {job.model} than the upper one ({', '.join(other) or 'files'}"
            " differ): both must run the same release"
        )
    try:
        check_site_job(job)
    except FederatedError as error:
        raise FederationError(str(error)) from None
