"""The `[regions]` table: what may be sent in parts, and groups of labels with a risk of their own."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit import toml
from edgekit.services.definition import RegionGroup, Regions, Service
from edgekit.services.labels import NAME, NAME_RULE, check_labels

MAX_GROUPS = 16
"""Groups of a service: those that a gate can have."""


def check_regions(service: Service, regions: Regions) -> None:
    """Raise TomlError for regions that cannot be told apart, judged or sent."""
    if service.hard_samples.mode == "filter":
        raise toml.TomlError(
            '"hard_samples.mode" is "filter"', "a filter judges whole pictures; use another mode, or no [regions]"
        )
    if service.task == "detection":
        if regions.clean:
            raise toml.TomlError(
                '"regions.clean" is set', "a detector has no label for what is clean: it finds nothing"
            )
    else:
        _check_tiles(service, regions)
    if regions.groups:
        if service.hard_samples.mode != "risk":
            raise toml.TomlError('"regions.groups" is set', 'it belongs to hard_samples.mode = "risk" only')
        _check_groups(regions.groups)


def _check_tiles(service: Service, regions: Regions) -> None:
    """A classifier answers about each tile, and one of its labels says that a tile is clean."""
    tiles = service.pipeline.tiles if service.pipeline is not None else None
    if tiles is None:
        raise toml.TomlError(
            '"pipeline.tiles" is missing', 'they are the regions of a classification service; or set task = "detection"'
        )
    if tiles.aggregate != "worst":
        raise toml.TomlError(
            f'"pipeline.tiles.aggregate" is "{tiles.aggregate}"', 'with [regions] each tile counts; use "worst"'
        )
    if not regions.clean:
        raise toml.TomlError(
            '"regions.clean" is missing', "name the label of the model that a tile without a defect gets"
        )
    if regions.clean in tiles.worst[:-1]:
        raise toml.TomlError(
            f'"pipeline.tiles.worst" has {toml.show(regions.clean)} before other labels',
            "regions.clean is the best one: put it last, or leave it out",
        )
    for key in ("context", "silent"):
        if getattr(regions, key) != getattr(Regions(), key):
            raise toml.TomlError(f'"regions.{key}" is set', 'it belongs to task = "detection" only')


def _check_groups(groups: Sequence[RegionGroup]) -> None:
    if len(groups) > MAX_GROUPS:
        raise toml.TomlError(f'"regions.groups" has {len(groups)} tables', f"at most {MAX_GROUPS} belong there")
    for index, group in enumerate(groups):
        if not NAME.fullmatch(group.name):
            raise toml.TomlError(f'"regions.groups[{index}].name" is {toml.show(group.name)}', NAME_RULE)
        check_labels(f"regions.groups[{index}].labels", group.labels)
    names = [group.name for group in groups]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise toml.TomlError(
            f'"regions.groups" has the name {toml.show(twice[0])} twice', "each name belongs there once"
        )
    labels = [label for group in groups for label in group.labels]
    twice = [label for index, label in enumerate(labels) if label in labels[:index]]
    if twice:
        raise toml.TomlError(f'"regions.groups" has {toml.show(twice[0])} in two groups', "a label belongs to one")
    rest = sum(not group.labels for group in groups)
    if rest != 1:
        raise toml.TomlError(
            f'"regions.groups" has {rest} groups without labels',
            "exactly one belongs there, which takes every label that no other names",
        )
