"""What deriving or executing a train step can refuse."""

from __future__ import annotations


class AutodiffError(ValueError):
    """A model, a request or an artefact that cannot be used; the message names what is wrong and what to do."""
