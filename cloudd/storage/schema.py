"""Every table of cloudd, as SQLAlchemy Core. A change needs a migration in `migrations/versions` (a test compares).

Times are seconds since 1970 (wall clock). Structured values that SQL never looks into (reports, verdicts) are JSON.
Blobs are named by their SHA-256 in hex; a row may name a blob only after the blob is durable.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    true,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only for a column of exactly the type INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")

invites = Table(
    "invites",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("secret_hash", Text, nullable=False),  # hex, never the secret itself
    Column("name", Text, nullable=False),  # proposed device name, may be empty
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
    Column("used_by", Text),  # device id
)

devices = Table(
    "devices",
    metadata,
    Column("id", Text, primary_key=True),  # canonical device id
    Column("name", Text, nullable=False),
    Column("enrolled_at", Double, nullable=False),
    Column("serial", Text, nullable=False),  # of the newest certificate
    Column("not_after", Double, nullable=False),  # of the newest certificate
    Column("machine", Text, nullable=False, server_default=""),  # from its last hello
    Column("version", Text, nullable=False, server_default=""),
    Column("seen_at", Double),  # last hello or report
    Column("online_until", Double),  # silent for longer than this means offline; NULL: not connected
)

revocations = Table(
    "revocations",
    metadata,
    Column("device_id", Text, primary_key=True),  # no foreign key: a forgotten device stays revoked
    Column("revoked_at", Double, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
)

desired = Table(
    "desired",
    metadata,
    Column("device_id", Text, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", Text, nullable=False),
    Column("services", JSON, nullable=False),  # list of service definition texts (TOML)
    Column("changed_at", Double, nullable=False),
)

reports = Table(
    "reports",
    metadata,
    Column("device_id", Text, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("received_at", Double, nullable=False),
    Column("report", JSON, nullable=False),  # the newest edgekit.messages.Report
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("digest", Text, nullable=False),  # SHA-256 of package.toml
    Column("task", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("added_at", Double, nullable=False),
)

model_files = Table(
    "model_files",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("sha256", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),  # bytes
    ForeignKeyConstraint(["name", "version"], ["models.name", "models.version"], ondelete="CASCADE"),
)

answers = Table(
    "answers",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("device_id", Text, nullable=False),
    Column("sample_id", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("serial", Text, nullable=False),
    Column("reason", Text, nullable=False),  # edgekit.messages.SendReason
    Column("late", Boolean, nullable=False),
    Column("captured_at", Double, nullable=False),
    Column("answered_at", Double, nullable=False),
    Column("compute_ms", Double, nullable=False),
    Column("edge", JSON, nullable=False),  # edgekit.messages.Verdict
    Column("cloud", JSON, nullable=False),  # edgekit.messages.Verdict
    Column("agrees", Boolean, nullable=False),  # both verdicts have the same label; of a mosaic: no region differs
    Column("picture", Text, index=True),  # blob; NULL once retention removed it
    Column("thumbnail", Text, index=True),  # blob, JPEG; NULL likewise
    Column("bytes", BigInteger, nullable=False),  # picture and thumbnail together, 0 once removed
    Column("regions", Integer, nullable=False, server_default="0"),  # of a mosaic
    Column("differing", JSON, nullable=False, server_default="[]"),  # indices of those that were answered otherwise
    # edgekit.regions.header.MosaicHeader of a mosaic; NULL of a whole picture, and once the picture was removed
    Column("mosaic", JSON(none_as_null=True)),
    # MosaicAnswer; NULL if a whole picture was classified
    Column("mosaic_answer", JSON(none_as_null=True)),
    Column("tail", Text, nullable=False, server_default=""),  # of features: the tail package, name@version
    Column("cut", Text, nullable=False, server_default=""),  # and its cut
    Column("compared", Boolean, nullable=False, server_default=true()),  # false: the edge had said nothing itself
    UniqueConstraint("device_id", "sample_id"),
)
Index("ix_answers_device_service", answers.c.device_id, answers.c.service)

federation_jobs = Table(
    "federation_jobs",
    metadata,
    Column("id", Text, primary_key=True),  # 32 hex digits: the session of its rounds
    Column("name", Text, nullable=False),
    Column("job", Text, nullable=False),  # edgekit.messages.federation.FederatedJob as JSON, as devices get it
    Column("definition", Text, nullable=False),  # TOML, as its owner wrote it
    Column("created_at", Double, nullable=False),
    Column("status", Text, nullable=False),  # running, packing, finished, stopped, failed
    Column("reason", Text, nullable=False, server_default=""),
    Column("version", Integer, nullable=False, server_default="0"),  # sums published
    Column("result", Text, nullable=False, server_default=""),  # the merged model, name@version
    Column("ended_at", Double),
)

federation_files = Table(
    "federation_files",
    metadata,
    Column("job_id", Text, ForeignKey("federation_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("path", Text, primary_key=True),  # of the train step, or rosters/N
    Column("sha256", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),  # bytes
)

federation_sums = Table(
    "federation_sums",
    metadata,
    Column("job_id", Text, ForeignKey("federation_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),  # of the cohort's round
    Column("version", Integer, nullable=False),  # of the state that it leads to
    Column("sha256", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),  # bytes
    Column("survivors", Integer, nullable=False),
    Column("config", LargeBinary, nullable=False),  # edgekit.secagg.messages.RoundConfig on its wire
    Column("nodes", LargeBinary, nullable=False),  # of a robust job: the survivors, 32 bytes each
)

federation_rounds = Table(
    "federation_rounds",
    metadata,
    Column("job_id", Text, ForeignKey("federation_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),  # rises with every try and every bucket
    Column("kind", Text, nullable=False),  # learn, evaluate
    Column("version", Integer, nullable=False),  # of the state that it is a round of
    Column("config", LargeBinary, nullable=False),
    Column("invited", LargeBinary, nullable=False),  # nodes, 32 bytes each
    Column("opened_at", Double, nullable=False),
    Column("closed_at", Double),  # NULL: it goes on
    Column("outcome", Text, nullable=False, server_default=""),  # summed, void
    Column("reason", Text, nullable=False, server_default=""),
    Column("record", JSON, nullable=False),  # cloudd.federation.store.RoundRecord: timeline, refusals, figures
)

federation_journal = Table(
    "federation_journal",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("place", Integer, primary_key=True),  # in the order in which the round accepted them
    Column("kind", Text, nullable=False),  # cloudd.federation.journal.Kind
    Column("node", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    ForeignKeyConstraint(
        ["job_id", "number"], ["federation_rounds.job_id", "federation_rounds.number"], ondelete="CASCADE"
    ),
)

federation_log = Table(
    "federation_log",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("job_id", Text, ForeignKey("federation_jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", Double, nullable=False),
    Column("text", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("action", Text, nullable=False),  # stable word: invite, enroll, revoke, desired, model ...
    Column("subject", Text, nullable=False),  # device id, model, token id
    Column("detail", Text, nullable=False, server_default=""),
)
