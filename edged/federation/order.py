"""What the supervisor tells the child process on its standard input: one JSON document."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edged.federation.settings import Federation
from edgekit.learning.budget import Budget

MAX_ORDER = 1 << 20
"""Bytes."""
LOST_LINK = 3
"""Exit status: cloudd cannot be reached; again when the link is up."""


class FederationOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Take part in a job, lead its site (`leads`), or (`finish`) make a candidate of the model that it ended with."""

    finish: bool = False
    state_dir: str
    device_id: str
    identity: str  # directory with key.pem, certificate.pem, authority.pem
    url: str  # https://host:port
    job: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    service: str  # the definition's text
    base: str  # directory of the package that the service runs
    policy: Federation
    budget: Budget = Budget()
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    name: str = ""  # finish: of the candidate
    version: str = ""
    scratch: str = ""  # finish: made if missing, and emptied
    leads: bool = False  # speak for the site in the upper job; then service and base are empty
    upper: str = ""  # leads: https://host:port of the upper cloudd
    upper_identity: str = ""  # leads: directory as `identity`, of what that cloudd certified


def dataset_name(job: str, service: str) -> str:
    """Of the dataset version that a job learns from: the labels when it began, so that all its rounds see the same."""
    return f"federated.{job[:12]}.{service}"[:64]
