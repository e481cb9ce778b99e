"""Secrets in files of the state directory: for the status page, and for loading models over the inference address."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgekit import atomic
from edgekit.webguard import new_page_token

MANAGEMENT_TOKEN = "management-token"  # noqa: S105 - the file's name
"""The file below the state directory whose content a client must show to have models loaded and unloaded."""


def secret_token(path: Path) -> str:
    """The token in a file; a new one is made if there is none or if it is too short to be one. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        token = path.read_text(errors="replace").strip()
        if len(token) >= 32:
            return token
    token = new_page_token()
    atomic.write_file(path, f"{token}\n".encode(), 0o600)
    return token
