"""What alembic runs: the waiting steps, on the connection and in the transaction that the caller opened."""

from __future__ import annotations

from alembic import context

from cloudd.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    on_version_apply=context.config.attributes.get("progress"),
)
context.run_migrations()
