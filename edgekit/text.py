"""Text that came from outside, made safe to show: on a terminal, in a log, in a record."""

from __future__ import annotations


def printable(text: str, instead: str = "?") -> str:
    """`text` with every control character, line break and other invisible character replaced."""
    return "".join(character if character.isprintable() else instead for character in text)
