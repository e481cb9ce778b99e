"""The `[federation]` table of edged.toml: what the plant allows, whatever cloudd proposes.

    [federation]
    enabled = true
    min_owners = 2                   # and all other numbers of edgekit.secagg.policy
    epsilon = 8.0                    # privacy budget of each service's samples; rounds without noise are refused then
    hours = "22:00-06:00"            # local time

    [federation.plants]              # whose rosters count: owner -> public key, as `edged roster key` prints it
    north = "02a9..."

Every key has a default. cloudd can propose less than that, but not get it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from edged.link.address import cloud_url
from edged.link.errors import LinkError
from edgekit import toml
from edgekit.secagg.errors import Refusal
from edgekit.secagg.policy import Policy

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_POINT = 33
_KEY = re.compile(r"0[23][0-9a-f]{64}")
_MAX_PLANTS = 64


class Federation(Policy, frozen=True, kw_only=True):
    """The table; every key has a default, and by default the device takes part in nothing."""

    enabled: bool = False
    """Whether this device takes part at all."""
    ask: bool = False
    """Whether somebody at the device has to agree to each job (`edged fl agree`, or on the page) before it begins."""
    plain: bool = False
    """Whether it may take part in jobs without secure aggregation: cloudd then sees its update."""
    plants: dict[str, str] = {}  # noqa: RUF012 - msgspec gives every table its own copy
    """Owner -> public key (66 hex digits) of the plants whose rosters count."""
    services: list[Annotated[str, Meta(min_length=1, max_length=64)]] | None = None
    """The services that may learn with others; None: all."""
    hours: Annotated[str, Meta(max_length=11)] = ""
    """When a job may run, local time: "22:00-06:00"; "": always."""
    min_samples: Annotated[int, Meta(ge=1, le=10_000_000)] = 20
    """Labelled samples that a service must have."""
    upper: Annotated[str, Meta(max_length=300)] = ""
    """Address of the upper cloudd: this device may lead jobs of its site there (two tiers); "": it leads none."""
    epsilon: Annotated[float, Meta(gt=0, le=1e3)] | None = None
    """Privacy budget of each service's samples, for all rounds together; None: none is kept."""
    delta: Annotated[float, Meta(gt=0, lt=0.1)] = 1e-5
    """The probability that belongs to epsilon."""

    def trusted(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Owner -> key. The table was checked by `read_federation`, so it does not raise."""
        from edgekit.secagg import signatures

        return {owner: signatures.from_point(key_bytes(text)) for owner, text in self.plants.items()}

    def check_privacy(self, private: bool) -> None:
        """Raises Refusal where a budget is kept and a round adds no noise: such a round costs without bound."""
        if self.epsilon is not None and not private:
            raise Refusal("policy", "the job adds no noise; this device keeps a privacy budget (federation.epsilon)")


class _File(msgspec.Struct, frozen=True, kw_only=True):
    federation: Federation


def read_federation(table: object) -> Federation:
    """The table as it was read from TOML. Raises TomlError that names the key and says what is right."""
    return _checked(toml.convert({"federation": table}, _File).federation)


def _checked(table: Federation) -> Federation:
    if len(table.plants) > _MAX_PLANTS:
        raise toml.TomlError(f'"federation.plants" has {len(table.plants)} owners; {_MAX_PLANTS} are allowed')
    seen: dict[bytes, str] = {}
    for owner, text in table.plants.items():
        try:
            point = key_bytes(text)
        except ValueError as error:
            raise toml.TomlError(
                f'"federation.plants.{owner}" is {toml.show(text)}',
                f"a public key as edged roster key prints it belongs there ({error})",
            ) from None
        if point in seen:
            raise toml.TomlError(
                f'"federation.plants.{owner}" is the key of "{seen[point]}" as well', "one plant is one owner"
            )
        seen[point] = owner
    try:
        table.trusted()
    except ValueError as error:
        raise toml.TomlError(f'"federation.plants" has a key that is no point of P-256 ({error})') from None
    if table.hours and not _HOURS.fullmatch(table.hours):
        raise toml.TomlError(f'"federation.hours" is {toml.show(table.hours)}', 'hours like "22:00-06:00" belong there')
    if table.upper:
        try:
            cloud_url(table.upper)
        except LinkError as error:
            raise toml.TomlError(f'"federation.upper" is {toml.show(table.upper)}', str(error)) from None
    if table.enabled and not table.plants and not table.plain:
        raise toml.TomlError(
            '"federation.enabled" is true and [federation.plants] is empty',
            "name the plants whose rosters count; without one no cohort can be formed",
        )
    return table


def open_at(hours: str, minute: int) -> bool:
    """Whether a minute of the day (0..1439, local time) lies within `hours`; they may go over midnight."""
    found = _HOURS.fullmatch(hours)
    if not found:
        return True
    first, last = (int(found[i]) * 60 + int(found[i + 1]) for i in (1, 3))
    return first <= minute < last if first < last else minute >= first or minute < last


def key_bytes(text: str) -> bytes:
    """A printed public key as a compressed point of P-256, 33 bytes. Raises ValueError if it cannot be one."""
    if not _KEY.fullmatch(text):
        raise ValueError(f"a key has {2 * _POINT} hex digits and begins with 02 or 03; this one has {len(text)}")
    return bytes.fromhex(text)


def key_text(point: bytes) -> str:
    """A compressed point as it stands in configuration and drafts: 66 hex digits."""
    return point.hex()
