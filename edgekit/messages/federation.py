"""Federated jobs: what devices and cloudd tell each other beside the wire messages of `edgekit.secagg.messages`.

All routes are on the device API (mTLS). A device is the one that its certificate names; every secagg message must be of
that node. Every request may be sent again with the same bytes: that is how a device resumes, and how it polls.

    GET  /v1/federation/jobs?known=REVISION     JobList; held up to WAIT_S while the list is still REVISION
    GET  /v1/federation/jobs/JOB                FederatedJob
    GET  /v1/federation/jobs/JOB/files/SHA256   a file of the job, a roster or a published sum; Range as /v1/blobs
    POST /v1/federation/jobs/JOB/next           Standing -> Turn; held up to WAIT_S
    POST /v1/federation/jobs/JOB/refusal        DeviceRefusal -> 204: the device sits this round (or this job) out

    POST /v1/federation/jobs/JOB/rounds/N       a secagg message -> 200 and the next one for this device,
                                                202: not yet, send the same again; 204: nothing follows
    PUT  /v1/federation/jobs/JOB/rounds/N/vector?offset=BYTES   a part of the masked words -> Uploaded; with
                                                &sha256=HEX the last part of a plain round's, which PlainUpdate follows
    GET  /v1/federation/jobs/JOB/rounds/N/vector                Uploaded: where to go on
    POST /v1/federation/jobs/JOB/rounds/N/plain                 PlainUpdate -> 204; only of a job that is not secure

    GET  /v1/federation/jobs/JOB/lead            LeadState; these are for the leader of a site's job alone
    POST /v1/federation/jobs/JOB/lead/sum        LeadOrder -> 200 SiteSum, 202: not yet, send the same again
    PUT  /v1/federation/jobs/JOB/lead/upper/SHA256?offset=BYTES   a part of a sum of the upper job -> Uploaded
    GET  /v1/federation/jobs/JOB/lead/upper/SHA256                Uploaded: where to go on
    POST /v1/federation/jobs/JOB/lead/published  PublishedRound of the upper job -> 204; its sums are here whole
    POST /v1/federation/jobs/JOB/lead/over       Over of the upper job -> 204

A secure round is Keys -> Roll, Shares -> Inbox, Held -> Ready, (vector), Masked?sha256=HEX -> Survivors,
Vote -> Unmask, Reveal -> 204, then `next` gives the Publication. The query `sha256` of Masked is that of the whole
vector. A plain round is (vector of unmasked words, as `secagg.fixedpoint.encode` makes them), PlainUpdate -> 204.

Errors are Problem: 404 for a job or round that this device has no part in, 409 for a message that was refused (`rule`
and sentence in RoundProblem), 410 for a round that is over (void, or closed without this device): back to `next`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.messages.base import Level, Message
from edgekit.messages.models import FileEntry
from edgekit.secagg.messages import MAX_COHORT

WAIT_S = 25.0
"""Longest time that a request is held."""
MAX_CHUNK = 4 << 20
"""Bytes of one part of a vector."""
MAX_STANDING = 4096
"""Bytes of the small JSON bodies."""
MAX_SUMS = 16
"""Published rounds in one reply; whoever misses more asks again."""

JobId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""The job's session, 16 random bytes, in hex: `RoundConfig.session` of all its rounds."""
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Meta(max_length=500)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
RoundKind = Literal["learn", "evaluate"]
Symmetry = Literal["none", "mirror", "any"]
"""What a picture may be turned into without another label: nothing, its mirror image, any mirrored quarter turn."""


class LocalTraining(Message, frozen=True, kw_only=True):
    """How each device trains in one round."""

    epochs: Annotated[int, Meta(ge=1, le=1000)] = 1
    steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Batches of a round, whatever a device holds; the next round goes on where this one ended. 0: whole `epochs`."""
    batch: Annotated[int, Meta(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=10)] = 0.01
    """The highest one."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Over all rounds of the job together."""
    warm_up: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Rounds in which the rate rises to `learning_rate`."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    moments: Literal["fresh", "kept"] = "fresh"
    """Whether momenta begin anew in each round, or go on; they stay on the device and are sealed like the rest."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Of SGD."""
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_norm: Annotated[float, Meta(gt=0, le=1e6)] = 5.0
    """Of all gradients of a step together; longer ones are shortened."""
    smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    balance: Literal["none", "root", "full"] = "none"
    """How much more often rare labels are shown."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    trainable: Annotated[str, Meta(min_length=1, max_length=500)] = ".*"
    """Regular expression for the names of the weights that are trained, and shared unless personal."""
    symmetry: Symmetry = "none"
    augment: bool = True
    """Small changes of place, size and light, as every camera makes them."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class Deadlines(Message, frozen=True, kw_only=True):
    """Seconds that cloudd waits in each step of a round before it goes on without those who have not answered."""

    gather: Annotated[float, Meta(gt=0, le=7 * 86_400)] = 3600.0
    """For enough devices to stand ready, before that is on record as a void round."""
    settle: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """For more than enough of them."""
    keys: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    """Each of keys, shares and held: devices answer at once, training or not."""
    train: Annotated[float, Meta(gt=0, le=7 * 86_400)] = 3600.0
    """From the invitation to the masked vector."""
    unmask: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    """Each of votes and reveals."""
    patience: Annotated[float, Meta(ge=0, le=7 * 86_400)] = 1800.0
    """More time for devices that masked, or may have, while too few have answered: a void round uses them up."""


class FederatedJob(Message, frozen=True, kw_only=True):
    """A job as every device checks it. It never changes; `State.digest(layout.digest, job)` binds it to each round."""

    id: JobId
    service: Name
    model: Name
    """name@version of the base: a device takes part if its service runs exactly that."""
    package: Hash
    """SHA-256 of the base's package.toml."""
    task: Literal["classification", "detection"] = "classification"
    """Of the model: a detector learns from boxes."""
    labels: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1024)]
    """In the order of the model's output."""
    plan: Annotated[str, Meta(max_length=1 << 16)]
    """JSON of `edgekit.federated.plan.Plan`."""
    local: LocalTraining
    rounds: Annotated[int, Meta(ge=1, le=100_000)]
    """Sums that the job ends after."""
    evaluate_every: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """After so many sums, and at the end, one evaluation round; 0: never."""
    secure: bool = True
    """False: updates travel unmasked, and only devices whose policy says `plain = true` take part."""
    least: Annotated[int, Meta(ge=2, le=MAX_COHORT)] = 5
    """Devices of a cohort, at least (secure: 3)."""
    most: Annotated[int, Meta(ge=2, le=MAX_COHORT)] = 32
    """`RoundConfig.invited` of each round is max(3, most)."""
    bits: Literal[32, 16] = 32
    """Of a word: 16 is `lite`. The key stream is each round's own: AES, or ChaCha20 where a device has no AES."""
    deadlines: Deadlines = Deadlines()
    rosters: Annotated[tuple[FileEntry, ...], Meta(max_length=64)] = ()
    """Rosters as plants signed them, by hash; `path` is for people."""
    files: Annotated[tuple[FileEntry, ...], Meta(max_length=64)] = ()
    """The folder that `edgekit.training.write_plan` makes: step/..., forward.onnx, model.onnx, weights.safetensors."""

    upper: FederatedJob | None = None
    """Of a site's job: the job between sites that its devices take part in through their site.

    Their state is the upper job's, moved by its published sums alone; the site's own rounds only collect. All that is
    learned (plan, local, rounds, labels, files) is the upper job's too; its own are session, cohort, words, deadlines
    and rosters. The upper job has no upper job.
    """
    leader: Annotated[str, Meta(max_length=80)] = ""
    """Of a site's job: id of the device that hands on the site's sums, and brings what the upper job publishes."""

    @property
    def session(self) -> bytes:
        """`RoundConfig.session` of all rounds, 16 bytes."""
        return bytes.fromhex(self.id)


class JobNotice(Message, frozen=True, kw_only=True):
    """One running job in a list."""

    id: JobId
    service: str
    model: str
    secure: bool
    rounds: int
    version: int  # sums published so far
    head: bool = False
    """A head of one round: also for services that run what an earlier one has made of the same base."""
    leads: bool = False
    """This device is the leader of the site's job: it is to take part in the upper job for its site."""


class JobList(Message, frozen=True, kw_only=True):
    """Reply of GET /v1/federation/jobs: every running job that this device may take part in."""

    revision: str  # of the set of jobs; published sums do not change it
    jobs: list[JobNotice] = []  # noqa: RUF012 - msgspec gives every message its own copy


class Standing(Message, frozen=True, kw_only=True):
    """A device asks what it is to do: it holds the state `version` and is ready for a round of it."""

    version: Annotated[int, Meta(ge=0, lt=2**31)]
    state: Hash
    """Digest of its state. Another one than cloudd's at that version ends its part in the job (409)."""
    samples: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    """Labelled ones, as far as the device tells (it may round): those with more are invited first."""
    trained: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    """Asynchronous jobs (`Plan.max_age`): the version to which the update that it has ready belongs."""
    aes: bool = True
    """Whether its processor has AES instructions."""
    health: Level = "ok"
    """With "error" it is not invited."""
    power: Literal["mains", "battery", "unknown"] = "unknown"
    """What it runs on. This and the next two are for jobs that ask for it (`[needs]`), and as coarse as that allows."""
    battery: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Charge of its battery, in tenths; None: it has none, or cannot tell."""
    celsius: Annotated[float, Meta(ge=-100, le=200)] | None = None
    """Of its hottest sensor, in steps of 5."""


class Invitation(Message, frozen=True, kw_only=True, tag="invitation"):
    """Take part in round `number`, now."""

    number: Annotated[int, Meta(ge=0, lt=2**31)]
    """`RoundConfig.round`; rises with every try and every cohort of the job."""
    kind: RoundKind
    version: int  # of the state that it is a round of
    config: bytes  # secagg RoundConfig, as on its wire; also of a plain round
    left_s: float  # until the vector must be there


class PublishedSum(Message, frozen=True, kw_only=True):
    """The sum of one cohort: little-endian words, (parameters + 2), at files/SHA256."""

    number: int
    config: bytes
    sha256: Hash
    size: int  # bytes
    survivors: int
    nodes: Annotated[tuple[bytes, ...], Meta(max_length=MAX_COHORT)] = ()  # robust jobs and heads: who they are


class PublishedRound(Message, frozen=True, kw_only=True):
    """What takes every state of `version` - 1 to `version`: one sum, or those of all buckets of a robust round."""

    version: int
    sums: tuple[PublishedSum, ...]


class Publication(Message, frozen=True, kw_only=True, tag="publication"):
    """Apply these, in this order, and ask again."""

    rounds: tuple[PublishedRound, ...]


class Later(Message, frozen=True, kw_only=True, tag="later"):
    """Nothing to do now: ask again after `retry_after_s` (0: at once, it is a long poll)."""

    reason: str
    retry_after_s: float = 0.0


class Over(Message, frozen=True, kw_only=True, tag="over"):
    """The job has ended; what was published remains to be fetched for a while."""

    outcome: Literal["finished", "stopped", "failed"]
    reason: str = ""
    version: int  # sums published: a device that holds fewer gets a Publication first


Turn = Invitation | Publication | Later | Over
_TURN: msgspec.json.Decoder[Turn] = msgspec.json.Decoder(Turn)


class Uploaded(Message, frozen=True, kw_only=True):
    """Bytes of a device's vector that cloudd has, and how many it must have. Its hash says whether they are right."""

    size: int
    whole: int
    taken: bool = False
    """The part said the whole vector's hash, as PlainUpdate does: it is in the round."""


class PlainUpdate(Message, frozen=True, kw_only=True):
    """The uploaded vector is whole and has this SHA-256."""

    sha256: Hash


class LeadState(Message, frozen=True, kw_only=True):
    """How a site's job stands, for its leader."""

    version: int  # of the upper job's states: sums that its devices can apply
    standing: int  # devices that stand ready
    samples: int  # labelled ones of these, as far as they tell


class LeadOrder(Message, frozen=True, kw_only=True):
    """The leader wants the site's sum for a state of the upper job. Asked again, it is the same sum."""

    kind: RoundKind
    version: Annotated[int, Meta(ge=0, lt=2**31)]
    state: Hash
    """Digest of the upper job's state. Another one than the site's at that version is refused (409)."""


class SiteSum(Message, frozen=True, kw_only=True):
    """The sum of one cohort of the site, at files/SHA256 for the leader alone: words as of a published sum."""

    number: int
    kind: RoundKind
    version: int
    config: bytes
    sha256: Hash
    size: int  # bytes
    survivors: int


class DeviceRefusal(Message, frozen=True, kw_only=True):
    """Why a device does not take part: a courtesy for the people at cloudd, so it tells no more than the rule does."""

    number: Annotated[int, Meta(ge=0, lt=2**31)] | None = None  # None: of the whole job
    rule: Annotated[str, Meta(max_length=40)]
    text: Text = ""


class RoundProblem(Message, frozen=True, kw_only=True):
    """Body of a 409: a Problem with the rule of `edgekit.secagg.errors.Rule` that was broken."""

    error: str
    rule: str


def evaluation_model(state: bytes) -> bytes:
    """`RoundConfig.model` of an evaluation round of the state with this digest, 32 bytes.

    Not the digest itself: a device contributes once to each `model`, and both to learning and to evaluation.
    """
    return hashlib.sha256(b"edged/federated/1/evaluation\0" + state).digest()


def encode_turn(turn: Turn) -> bytes:
    """As `next` replies."""
    return msgspec.json.encode(turn)


def decode_turn(data: bytes) -> Turn:
    """What `next` replied. Raises msgspec.ValidationError (a ValueError) for anything else."""
    return _TURN.decode(data)
