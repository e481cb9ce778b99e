"""What a job asks of a device before it invites it: power, battery, heat, health, as the device itself says. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.messages.federation import Standing


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """The table `[needs]` of a job. The defaults ask for nothing but a device that is not in trouble."""

    power: Literal["any", "mains"] = "any"
    """"mains": not on a battery. A device without any battery is on mains."""
    min_battery: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Charge that a device on its battery must have."""
    max_celsius: Annotated[float, Meta(gt=0, le=150)] | None = None
    """Of the hottest sensor. A device that has none is not too hot."""
    health: Literal["ok", "warning"] = "warning"
    """The worst state that it may be in."""


def lack(standing: Standing, needs: Needs, min_samples: int) -> str:
    """What a device lacks to be invited, in a word or two; "" if nothing. The same words for the same lack."""
    if standing.health == "error" or (standing.health == "warning" and needs.health == "ok"):
        return f"health: {standing.health}"
    if standing.samples < min_samples:
        return "too few samples"
    if needs.power == "mains" and standing.power != "mains":
        return "on battery" if standing.power == "battery" else "power unknown"
    if standing.power == "battery" and (standing.battery or 0.0) < needs.min_battery:
        return "battery too low"
    if needs.max_celsius is not None and standing.celsius is not None and standing.celsius > needs.max_celsius:
        return "too hot"
    return ""
