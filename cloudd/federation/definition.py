"""What a person writes to start a job: a strict TOML table."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from cloudd.federation import sites
from cloudd.federation.errors import FederationError
from cloudd.federation.needs import Needs
from edgekit import toml
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.plan import Plan
from edgekit.federated.scaffold import Scaffold
from edgekit.messages.federation import Deadlines, FederatedJob, LocalTraining
from edgekit.packages import PackageError, check_name, check_version
from edgekit.secagg import signatures
from edgekit.secagg.messages import MAX_COHORT
from edgekit.secagg.policy import Policy

MAX_TEXT = 1 << 18
"""Bytes of a definition."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """When rounds may begin, by the clock of cloudd's host in UTC. From 22:00 to 06:00 goes over midnight."""

    begin: str
    end: str

    def open(self, second: float) -> bool:
        """Whether a wall-clock time (seconds since the epoch) lies in it."""
        now, begin, end = second % 86_400, _second(self.begin), _second(self.end)
        return begin <= now < end if begin < end else now >= begin or now < end


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """All of a job but its plan, its files and the contents of its rosters."""

    name: str
    """For people and for commands."""
    service: Annotated[str, Meta(max_length=200)]
    model: Annotated[str, Meta(max_length=200)]
    """The base: NAME or NAME@VERSION of a registered classification model in float32."""
    rounds: Annotated[int, Meta(ge=1, le=100_000)]
    evaluate_every: Annotated[int, Meta(ge=0, le=100_000)] = 0
    secure: bool = True
    least: Annotated[int, Meta(ge=2, le=MAX_COHORT)] = 5
    most: Annotated[int, Meta(ge=2, le=MAX_COHORT)] = 32
    bits: Literal[32, 16] = 32
    colluders: Annotated[int, Meta(ge=0, le=MAX_COHORT)] = 0
    """So many devices of the whole roster may collude with cloudd; devices have the last word."""
    min_owners: Annotated[int, Meta(ge=1, le=MAX_COHORT)] = 1
    """Different plants among the survivors, at least."""
    min_samples: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    """Labelled samples that an invited device says it has, at least."""
    tries: Annotated[int, Meta(ge=1, le=100)] = 5
    """Void rounds in a row after which the job has failed."""
    new_labels: Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=256)] = []
    """A head of one round: classes that the base does not have."""
    continues: Annotated[str, Meta(max_length=64)] = ""
    """A head of one round: the job whose totals it begins with, so that sites can correct theirs or take them out."""
    upper: str = ""
    """Of a site's job: the file of the upper job, from `cloudd fl export` there; relative to the definition."""
    upper_job: list[str] = []
    """Its content in parts, which `cloudd fl start` puts here."""
    leader: Annotated[str, Meta(max_length=80)] = ""
    """Of a site's job: id of the device that takes part in the upper job for the site."""
    result: str = ""
    """Name of the merged model's package; "": that of the base."""
    version: str = ""
    """Its version; "": that of the base, "-", the job's name."""
    local: LocalTraining = LocalTraining()
    deadlines: Deadlines = Deadlines()
    needs: Needs = Needs()
    window: Window | None = None
    plants: dict[str, str] = {}
    """Owner -> public key of a plant: 66 hex digits, as `edged roster key` prints it."""
    rosters: list[str] = []
    """Roster files, relative to the definition."""

    def policy(self) -> Policy:
        """What cloudd takes the devices to demand: it voids early what they would refuse."""
        return Policy(
            min_cohort=max(3, self.least),
            min_owners=self.min_owners,
            colluders=self.colluders,
            max_clip=1e9,
            max_weight=1 << 20,
            max_parameters=1 << 28,
        )

    def between(self) -> FederatedJob | None:
        """The job between sites that this is a site's job of."""
        return sites.joined(self.upper_job)

    def trusted(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """The plants' keys. Raises FederationError."""
        found = {}
        for owner, text in self.plants.items():
            try:
                found[owner] = signatures.from_point(bytes.fromhex(text))
            except ValueError:
                raise FederationError(
                    f"the key of the plant {toml.show(owner)} is none; 66 hex digits belong there, as "
                    "`edged roster key` prints them"
                ) from None
        return found


def read(text: str) -> tuple[Definition, Plan]:
    """The definition and its table `[plan]`. Raises FederationError naming the key that is wrong."""
    try:
        table = toml.read(text.encode("utf-8", "surrogatepass"), MAX_TEXT)
        sites.fill(table)
        plan = table.pop("plan", None)
        definition = toml.convert(table, Definition)
    except toml.TomlError as error:
        raise FederationError(error.at("the job")) from None
    if not isinstance(plan, dict):
        raise FederationError('"plan" is missing in the job: a table with [plan.strategy] belongs there')
    _check(definition)
    found = _plan(plan, definition)
    _check_head(definition, found)
    return definition, found


def _plan(table: dict[str, Any], definition: Definition) -> Plan:
    try:
        plan = msgspec.convert(table, Plan)
    except (msgspec.ValidationError, FederatedError) as error:
        raise FederationError(f"[plan] of the job: {str(error).replace('$.', 'plan.')}") from None
    if isinstance(plan.strategy, Scaffold) and definition.local.optimiser != "sgd":
        raise FederationError('local.optimiser = "adamw": SCAFFOLD\'s correction belongs to plain gradients; take sgd')
    if plan.robust is not None and definition.least < plan.robust.min_bucket:
        raise FederationError(
            f"least = {definition.least}: each bucket is a cohort, and robust.min_bucket is {plan.robust.min_bucket}"
        )
    if plan.robust is not None and not definition.secure:
        raise FederationError("robust buckets protect secure sums; of a plain job write secure = true, or no robust")
    return plan


def _check_head(definition: Definition, plan: Plan) -> None:
    """What belongs to a head of one round, and what does not."""
    if not isinstance(plan.strategy, OneRoundHead):
        if definition.new_labels or definition.continues:
            raise FederationError(
                'new_labels and continues belong to a head of one round: plan.strategy.strategy = "additive-head"'
            )
        return
    if definition.rounds != 1:
        raise FederationError(f"rounds = {definition.rounds}: a head takes one round; a later job continues this one")
    if definition.bits != 32:
        raise FederationError("bits = 16: words of 16 bits have no room for the sums of a head; take 32")
    if definition.local != LocalTraining():
        raise FederationError("[local] is the training of a job with many rounds; a head of one round has none")
    if plan.strategy.continues:
        raise FederationError('plan.strategy.continues: write continues = "NAME" of the job before at the top instead')
    if definition.new_labels and definition.continues:
        raise FederationError("new_labels: a job that continues another one has its labels")


def _check(definition: Definition) -> None:
    for key in ("name", "result"):
        value = getattr(definition, key)
        if (value or key == "name") and not _NAME.fullmatch(value):
            raise FederationError(f"{key} = {toml.show(value)}: 1 to 64 of a-z, 0-9, '.', '_', '-' belong there")
    try:
        if definition.result:
            check_name(definition.result)
        if definition.version:
            check_version(definition.version)
    except PackageError as error:
        raise FederationError(str(error)) from None
    if not definition.service or not definition.service.isprintable():
        raise FederationError("service: the name of the devices' service belongs there")
    try:
        re.compile(definition.local.trainable)
    except re.error as error:
        raise FederationError(f"local.trainable is no regular expression: {error}") from None
    local = definition.local
    if local.optimiser != "sgd" and local.momentum:
        raise FederationError(f"local.momentum = {local.momentum:g}: it belongs to sgd; adamw has moments of its own")
    if local.steps and local.epochs != 1:
        raise FederationError(f"local.steps = {local.steps}, local.epochs = {local.epochs}: write one of the two")
    least = 3 if definition.secure else 2
    if not least <= definition.least <= definition.most:
        raise FederationError(
            f"least = {definition.least}, most = {definition.most}: a cohort has at least {least} devices "
            f"{'with' if definition.secure else 'without'} secure aggregation, and most is not below least"
        )
    if definition.secure and definition.deadlines.train <= 3 * definition.deadlines.keys:
        raise FederationError(
            f"deadlines.train = {definition.deadlines.train:g}: keys, shares and held may take "
            f"{definition.deadlines.keys:g} seconds each of it; more than three times that belongs there"
        )
    if definition.window is not None:
        for key in ("begin", "end"):
            if not _CLOCK.fullmatch(getattr(definition.window, key)):
                raise FederationError(f'window.{key} = "{getattr(definition.window, key)}": HH:MM belongs there')
    if definition.secure and not (definition.plants and definition.rosters):
        raise FederationError(
            "a secure job needs [plants] with the plants' public keys, and the rosters that the plants signed: "
            "cloudd must not choose who may join"
        )
    definition.trusted()


def _second(clock: str) -> int:
    return int(clock[:2]) * 3600 + int(clock[3:]) * 60
