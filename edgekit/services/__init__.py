"""The service definition: what a user wants to run, as one strict TOML file.

    name = "solder"
    model = "solder-small"            # newest installed version, or "solder-small@1.2.0"

    [hard_samples]
    answer_model = "solder-large"     # what cloudd answers with

Everything else has a default. An unknown key, a wrong type or a value out of range is an error that names the key and
what is allowed; nothing is guessed and nothing is ignored.

definition  the tables
checks      rules that span more than one key
source      the rules of `[source]`
regions     the rules of `[regions]`
identity    the rules of the tasks anomaly and embedding
split       the rules of `[split]` and of what may leave
labels      the labels that a definition names
learning    the `[learning]` table and its rules
"""

from __future__ import annotations

from edgekit import toml
from edgekit.outputs import Output
from edgekit.packages.manifest import PackageError
from edgekit.services.checks import check, check_pipeline
from edgekit.services.definition import (
    CAMERAS,
    NOTHING_LABEL,
    DecisionRules,
    Detection,
    Gallery,
    HardSamples,
    Pipeline,
    RegionGroup,
    Regions,
    Retention,
    Samples,
    Service,
    Source,
    Split,
    Tiles,
    VerdictWord,
)
from edgekit.services.labels import MAX_RULE_BYTES, MAX_SHOWN_LABELS, label_problem
from edgekit.services.learning import (
    Learning,
    LearningJudging,
    LearningProbation,
    LearningShadow,
    LearningTriggers,
)
from edgekit.services.source import place

__all__ = [
    "CAMERAS",
    "MAX_RULE_BYTES",
    "MAX_SERVICE",
    "MAX_SHOWN_LABELS",
    "NOTHING_LABEL",
    "DecisionRules",
    "Detection",
    "Gallery",
    "HardSamples",
    "Learning",
    "LearningJudging",
    "LearningProbation",
    "LearningShadow",
    "LearningTriggers",
    "Output",
    "Pipeline",
    "RegionGroup",
    "Regions",
    "Retention",
    "Samples",
    "Service",
    "ServiceError",
    "Source",
    "Split",
    "Tiles",
    "VerdictWord",
    "check_pipeline",
    "dump_service",
    "label_problem",
    "parse_service",
    "place",
]

MAX_SERVICE = 65_536
"""Bytes of one service definition."""


class ServiceError(ValueError):
    """The service definition cannot be used; the message says which key, why, and what is allowed."""


def parse_service(text: str, origin: str) -> Service:
    """Read one definition; `origin` (a file name, "cloudd") appears in every error. Raises ServiceError."""
    name = ""
    try:
        table = toml.read(text.encode("utf-8", "surrogatepass"), MAX_SERVICE)
        name = table["name"] if isinstance(table.get("name"), str) else ""
        service = toml.convert(table, Service)
        check(service)
    except toml.TomlError as error:
        raise ServiceError(error.at(f"service {toml.show(name)} ({origin})" if name else origin)) from None
    except PackageError as error:
        raise ServiceError(f"service {toml.show(name)} ({origin}): {error}") from None
    return service


def dump_service(service: Service) -> str:
    """The definition as TOML text; `parse_service` reads it back to an equal Service."""
    return toml.dump(service)
