"""The table of gradient rules: operator -> what makes input gradients of output gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.autodiff.builder import GraphBuilder, Node, Value

Needs = tuple[bool, ...]
"""For each input of the node, whether a gradient is wanted."""
Gradients = Sequence[Value | None]
"""For each input of the node its gradient; None where none is wanted. May be shorter than the inputs."""
Rule = Callable[[GraphBuilder, Node, Value, Needs], Gradients]
RuleOfMany = Callable[[GraphBuilder, Node, Sequence[Value | None], Needs], Gradients]

RULES: dict[str, Rule] = {}
"""Operators of one differentiable output. A rule gets that output's gradient."""
RULES_OF_MANY: dict[str, RuleOfMany] = {}
"""Operators of several outputs. A rule gets every output's gradient, None where the loss does not depend on it."""
CONSTANT = frozenset(
    (
        *("And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater"),
        *("GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero", "Not", "OneHot", "Or", "Range"),
        *("Round", "Shape", "Sign", "Size", "Xor"),
    )
)
"""Operators whose output does not change, or only in jumps, with their inputs: no gradient passes them."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of `operators`."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def rule_of_many(*operators: str) -> Callable[[RuleOfMany], RuleOfMany]:
    """As `rule`, for operators of several outputs."""

    def register(function: RuleOfMany) -> RuleOfMany:
        for operator in operators:
            RULES_OF_MANY[operator] = function
        return function

    return register


def supported() -> list[str]:
    """The operators through which a gradient can pass, and those that stop it."""
    return sorted({*RULES, *RULES_OF_MANY, *CONSTANT, "BatchNormalization"})
