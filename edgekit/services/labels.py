"""Labels that a definition names: lists of them, and whether the model knows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgekit import toml
from edgekit.services.definition import NOTHING_LABEL, Service

MAX_RULE_BYTES = 4096
"""UTF-8 of the labels in one list of a definition; the list of tiles goes to cloudd with every hard sample."""
MAX_SHOWN_LABELS = 12
"""Labels of a model that an error names."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAME_RULE = "use 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit"


def check_labels(key: str, labels: Sequence[str]) -> None:
    """Raise TomlError for a list that is too long, or has a label twice."""
    if sum(len(label.encode("utf-8", "replace")) for label in labels) > MAX_RULE_BYTES:
        raise toml.TomlError(f'"{key}" is too long', f"labels of at most {MAX_RULE_BYTES} bytes together belong there")
    twice = [label for index, label in enumerate(labels) if label in labels[:index]]
    if twice:
        raise toml.TomlError(f'"{key}" has {toml.show(twice[0])} twice', "each label belongs there once")


def label_problem(service: Service, labels: Sequence[str]) -> str:
    """Why the service's rules do not fit a model with these `labels`, without a full stop; "" if they do."""
    if service.hard_samples.filter == "CrossEntropy" and len(labels) < 2:
        return '"hard_samples.filter" is "CrossEntropy", which compares classes, and the model has only one'
    if service.task == "embedding":
        return ""  # whom it knows is the gallery's, and changes while the service runs
    for key, wanted in _named(service):
        for label in wanted:
            if label not in labels:
                known = ", ".join(labels[:MAX_SHOWN_LABELS]) + (", ..." if len(labels) > MAX_SHOWN_LABELS else "")
                return f'"{key}" names {toml.show(label)}, which the model does not know; its labels are {known}'
    return ""


def _named(service: Service) -> Iterator[tuple[str, Sequence[str]]]:
    """Every list of labels in the definition, by its key."""
    if service.pipeline is not None and service.pipeline.tiles is not None:
        yield "pipeline.tiles.worst", service.pipeline.tiles.worst
    if service.decision is not None:
        no_label = {NOTHING_LABEL} if service.task == "detection" else set()
        for key, listed in (("decision.pass", service.decision.passes), ("decision.fail", service.decision.fail)):
            yield key, [label for label in listed if label not in no_label]
    if service.detection is not None:
        yield "detection.thresholds", list(service.detection.thresholds)
    if service.regions is not None:
        if service.task == "classification":
            yield "regions.clean", [service.regions.clean]
        for index, group in enumerate(service.regions.groups):
            yield f"regions.groups[{index}].labels", group.labels
