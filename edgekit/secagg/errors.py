"""The two ways in which a round ends without a sum."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, Literal, ParamSpec, TypeVar

Rule = Literal[
    "malformed",
    "order",
    "identity",
    "keys",
    "binding",
    "policy",
    "shares",
    "survivors",
    "certificate",
    "lists",
    "once",
    "value",
]
"""Why a message was refused.

malformed    not the bytes of that message, or sizes that do not fit the round
order        a step that does not follow from the last one
identity     a signature that does not hold, or a device outside the roster
keys         own keys missing or altered, duplicate or unusable keys
binding      another configuration, model, roster, roll or round than the receiver's
policy       outside the device's local policy
shares       too few neighbours' shares to go on
survivors    a survivor set that cannot be signed
certificate  too few, repeated or foreign signers
lists        a survivor that did not mask with all surviving neighbours, or does not prove it
once         something different from what this device did or signed already in this round: an alarm
value        an update or a sum that cannot be right (NaN, infinity, too large)
"""


class Refusal(ValueError):
    """A message or request was refused; nothing was revealed. `rule` is for machines, the text for people."""

    def __init__(self, rule: Rule, text: str) -> None:
        super().__init__(text)
        self.rule: Rule = rule


class Void(Exception):
    """The round has no sum and never will: too few devices were left. What had been collected is deleted."""


class RefusalLog:
    """What an object has refused, for its record; the first hundred."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.alarm = False
        """Whether something contradicted what this device had done or signed: a reason to tell the plant."""

    def log(self, refusal: Refusal) -> None:
        """Remember one."""
        if len(self.refusals) < _MAX_REFUSALS:
            self.refusals.append(refusal)
        self.alarm = self.alarm or refusal.rule == "once"


_MAX_REFUSALS = 100
_Log = TypeVar("_Log", bound=RefusalLog)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def recorded(method: Callable[Concatenate[_Log, _P], _R]) -> Callable[Concatenate[_Log, _P], _R]:
    """A method whose refusals go into the log of its object."""

    @functools.wraps(method)
    def step(self: _Log, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except Refusal as refusal:
            self.log(refusal)
            raise

    return step
