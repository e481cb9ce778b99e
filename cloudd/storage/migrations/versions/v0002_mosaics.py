"""answers: mosaics and what was found in their regions

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("answers", sa.Column("regions", sa.Integer(), server_default="0", nullable=False))
    op.add_column("answers", sa.Column("differing", sa.JSON(), server_default="[]", nullable=False))
    op.add_column("answers", sa.Column("mosaic", sa.JSON(), nullable=True))
    op.add_column("answers", sa.Column("mosaic_answer", sa.JSON(), nullable=True))
