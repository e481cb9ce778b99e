"""Rules of a service definition that span more than one key, or that a type cannot say."""

from __future__ import annotations

import difflib

from edgekit import toml
from edgekit.gates.filters import FILTERS
from edgekit.outputs import check_outputs
from edgekit.packages.manifest import split_ref
from edgekit.services.definition import DecisionRules, HardSamples, Pipeline, Service
from edgekit.services.identity import check_identity
from edgekit.services.labels import NAME, NAME_RULE, check_labels
from edgekit.services.learning import check_learning
from edgekit.services.regions import check_regions
from edgekit.services.source import check_source
from edgekit.services.split import check_split


def check(service: Service) -> None:
    """Raise TomlError or PackageError for what no service can mean."""
    if not NAME.fullmatch(service.name):
        raise toml.TomlError(f'"name" is {toml.show(service.name)}', NAME_RULE)
    split_ref(service.model, key="model")
    hard = service.hard_samples
    _check_filter(hard)
    if hard.asks:
        if not hard.answer_model:
            raise toml.TomlError(
                '"hard_samples.answer_model" is missing',
                'name the model that cloudd answers with, or set hard_samples.mode = "off"',
            )
        split_ref(hard.answer_model, key="hard_samples.answer_model")
    check_source(service.source)
    if service.pipeline is not None:
        check_pipeline(service.pipeline)
    if service.decision is not None:
        _check_decision(service.decision)
    if service.task == "detection":
        _check_boxes(service)
    elif service.detection is not None:
        raise toml.TomlError('"detection" is set', 'it belongs to task = "detection" only')
    check_identity(service)
    if service.regions is not None:
        check_regions(service, service.regions)
    check_split(service)
    if service.learning is not None:
        check_learning(service.learning)
    check_outputs(service.outputs)


def _check_filter(hard: HardSamples) -> None:
    """The filter has a name that Sedna knows, and only its own parameters."""
    given = hard.parameters.given() if hard.parameters is not None else {}
    if hard.mode != "filter":
        for key, there in (("filter", bool(hard.filter)), ("parameters", hard.parameters is not None)):
            if there:
                raise toml.TomlError(f'"hard_samples.{key}" is set', 'it belongs to hard_samples.mode = "filter" only')
        return
    if hard.filter not in FILTERS:
        lower = {name.lower(): name for name in FILTERS}
        near = difflib.get_close_matches(hard.filter.lower(), lower, n=1)
        what = f"is {toml.show(hard.filter)}" if hard.filter else "is missing"
        known = ", ".join(f'"{name}"' for name in FILTERS)
        advice = f'did you mean "{lower[near[0]]}"?' if near else f"one of {known} belongs there"
        raise toml.TomlError(f'"hard_samples.filter" {what}', advice)
    for key in given:
        if key in FILTERS[hard.filter]:
            continue
        owner = next(name for name, parameters in FILTERS.items() if key in parameters)
        mine = " and ".join(FILTERS[hard.filter]) or "no parameters"
        raise toml.TomlError(
            f'"hard_samples.parameters.{key}" is set', f'it belongs to the filter "{owner}"; "{hard.filter}" has {mine}'
        )


def _check_boxes(service: Service) -> None:
    """What a detector cannot be asked for."""
    if service.hard_samples.filter == "CrossEntropy":
        raise toml.TomlError(
            '"hard_samples.filter" is "CrossEntropy"',
            'that compares the probabilities of classes, and boxes have none; "IBT" and "Threshold" judge boxes',
        )
    tiles = service.pipeline.tiles if service.pipeline is not None else None
    if tiles is not None and tiles.aggregate == "mean":
        raise toml.TomlError(
            '"pipeline.tiles.aggregate" is "mean"', 'boxes have no mean; "worst" belongs to task = "detection"'
        )


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise TomlError for a pipeline that no picture could go through."""
    roi, tiles = pipeline.roi, pipeline.tiles
    if roi:
        whole = pipeline.roi_unit == "pixel"
        inside = all(value.is_integer() if whole else value <= 1.0 for value in map(float, roi))
        ordered = len(roi) == 4 and 0 <= roi[0] < roi[2] and 0 <= roi[1] < roi[3]
        if not (inside and ordered):
            unit = "whole pixels" if whole else 'fractions from 0 to 1 (or pixels, with roi_unit = "pixel")'
            raise toml.TomlError(
                f'"pipeline.roi" is {roi}',
                f"left, top, right and bottom belong there, left < right, top < bottom, in {unit}",
            )
    if tiles is None:
        return
    if tiles.overlap >= min(tiles.width, tiles.height):
        raise toml.TomlError(
            f'"pipeline.tiles.overlap" is {tiles.overlap}',
            f"tiles of {tiles.width}x{tiles.height} must overlap by less",
        )
    if tiles.aggregate == "worst" and not tiles.worst:
        raise toml.TomlError(
            '"pipeline.tiles.worst" is missing',
            'list the labels of the model, the worst first; a classifier may have pipeline.tiles.aggregate = "mean"',
        )
    check_labels("pipeline.tiles.worst", tiles.worst)


def _check_decision(rules: DecisionRules) -> None:
    if not rules.passes and not rules.fail:
        raise toml.TomlError('"decision" names no label', "list labels under decision.pass, decision.fail or both")
    check_labels("decision.pass", rules.passes)
    check_labels("decision.fail", rules.fail)
    both = [label for label in rules.passes if label in rules.fail]
    if both:
        raise toml.TomlError(
            f'"decision" has {toml.show(both[0])} under pass and under fail', "a label means one thing"
        )
