"""What pruning refuses."""

from __future__ import annotations


class PruningError(ValueError):
    """The graph cannot be understood or has nothing to take away; the message names the node and says why."""
