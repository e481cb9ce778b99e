"""The `[split]` table, and what `may_leave` demands of it."""

from __future__ import annotations

from edgekit import toml
from edgekit.packages.manifest import split_ref
from edgekit.services.definition import Service


def check_split(service: Service) -> None:
    """Raise TomlError for a split that could never be asked for, PackageError for heads that are no model's name.

    With `may_leave = "features"` nothing but a split may leave, so a service that asks must have one.
    """
    asks = service.hard_samples.asks
    if service.split is None:
        if service.may_leave == "features" and asks:
            raise toml.TomlError(
                '"split.heads" is missing',
                'may_leave is "features", and a head package makes them: name one, or let "raw" or "nothing" leave',
            )
        return
    split_ref(service.split.heads, key="split.heads")
    if not asks:
        raise toml.TomlError('"split" is set', "nobody is asked; it belongs to a service with hard samples")
    if service.may_leave == "nothing":
        raise toml.TomlError('"may_leave" is "nothing"', 'a split lets features leave; use "features" or "raw"')
    if service.task != "classification":
        raise toml.TomlError('"split" is set', 'it belongs to task = "classification" only')
    for key in ("pipeline", "regions"):
        if getattr(service, key) is not None:
            raise toml.TomlError(f'"{key}" is set', "a split looks at the whole picture; leave one of them out")
