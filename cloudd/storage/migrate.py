"""Brings a database to the schema of this release, step by step, inside the caller's transaction."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from cloudd.storage.errors import StorageError

log = logging.getLogger("cloudd.storage")

_FOLDER = Path(__file__).with_name("migrations")


def upgrade(connection: Connection) -> None:
    """Run every migration that the database has not seen, with a log line for each.

    Raises StorageError if a newer release wrote the database.
    """
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = [script.revision for script in scripts.walk_revisions()][::-1]
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in known:
        raise StorageError(
            f"the database has schema {present}, which this release (schema {known[-1]}) does not know: "
            "it was written by a newer cloudd; install that release, or restore a backup"
        )
    waiting = known[known.index(present) + 1 :] if present is not None else known
    if not waiting:
        return
    total = len(waiting)

    def progress(*, step: Any, **_ignored: Any) -> None:
        done = waiting.index(step.up_revision_id) + 1
        log.info("database migration %d of %d done: %s", done, total, scripts.get_revision(step.up_revision_id).doc)

    config.attributes["connection"] = connection
    config.attributes["progress"] = progress
    log.info("bringing the database from schema %s to %s", present or "nothing", known[-1])
    command.upgrade(config, "head")
