"""answers: features, the tail that answered them, and samples about which the edge had said nothing

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("answers", sa.Column("tail", sa.Text(), server_default="", nullable=False))
    op.add_column("answers", sa.Column("cut", sa.Text(), server_default="", nullable=False))
    op.add_column("answers", sa.Column("compared", sa.Boolean(), server_default=sa.true(), nullable=False))
