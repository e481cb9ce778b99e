"""federated jobs: files, sums, rounds with their journal, log

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _job() -> sa.Column[str]:
    return sa.Column("job_id", sa.Text(), nullable=False)


def _of_job(table: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_job_id_federation_jobs"
    return sa.ForeignKeyConstraint(["job_id"], ["federation_jobs.id"], name=name, ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "federation_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("result", sa.Text(), server_default="", nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_federation_jobs"),
    )
    op.create_table(
        "federation_files",
        _job(),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "path", name="pk_federation_files"),
        _of_job("federation_files"),
    )
    op.create_index("ix_federation_files_sha256", "federation_files", ["sha256"])
    op.create_table(
        "federation_sums",
        _job(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("survivors", sa.Integer(), nullable=False),
        sa.Column("config", sa.LargeBinary(), nullable=False),
        sa.Column("nodes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_federation_sums"),
        _of_job("federation_sums"),
    )
    op.create_index("ix_federation_sums_sha256", "federation_sums", ["sha256"])
    op.create_table(
        "federation_rounds",
        _job(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("config", sa.LargeBinary(), nullable=False),
        sa.Column("invited", sa.LargeBinary(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("closed_at", sa.Double()),
        sa.Column("outcome", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_federation_rounds"),
        _of_job("federation_rounds"),
    )
    op.create_table(
        "federation_journal",
        _job(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("node", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", "place", name="pk_federation_journal"),
        sa.ForeignKeyConstraint(
            ["job_id", "number"],
            ["federation_rounds.job_id", "federation_rounds.number"],
            name="fk_federation_journal_job_id_federation_rounds",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "federation_log",
        sa.Column("id", _ROW_ID, autoincrement=True, nullable=False),
        _job(),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_federation_log"),
        _of_job("federation_log"),
    )
    op.create_index("ix_federation_log_job_id", "federation_log", ["job_id"])
