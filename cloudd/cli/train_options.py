"""What the options of `cloudd train` may be; each function raises argparse.ArgumentTypeError for anything else."""

from __future__ import annotations

import argparse

from cloudd.cli import common


def merge(text: str) -> tuple[str, list[str]]:
    """NEW=OLD,OLD."""
    new, equals, olds = text.partition("=")
    found = [old for old in olds.split(",") if old]
    if not equals or not new.strip() or not found:
        raise argparse.ArgumentTypeError(f"{text!r} merges nothing; write NEW=OLD,OLD, such as defect=open,short")
    return new, found


def size(text: str) -> tuple[int, int]:
    """Width and height."""
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(side.isascii() and side.isdigit() and 16 <= int(side) <= 2048 for side in sides):
        return int(sides[0]), int(sides[-1])
    raise argparse.ArgumentTypeError(f"{text!r} is no size; write 64 or 320x240, sides from 16 to 2048 pixels")


def macs(text: str) -> int:
    """A count with K, M or G."""
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper(), 0)
    try:
        count = float(text[:-1] if factor else text) * (factor or 1)
    except ValueError:
        count = 0.0
    if not 1 <= count <= 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of multiply-adds; write 50M or 1.2G")
    return int(count)


def _whole(text: str, least: int, most: int, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}; write a whole number from {least} to {most}")
    return int(text)


def epochs(text: str) -> int:
    return _whole(text, 1, 10_000, "number of epochs")


def seed(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "seed")


def threads(text: str) -> int:
    return _whole(text, 1, 256, "number of threads")


def seconds(text: str) -> float:
    """Of computing."""
    seconds = common.duration(text)
    if not 0 < seconds < 1e8:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to train for; write 90, 30m or 2h")
    return seconds


def share(text: str) -> float:
    """0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.01 <= share <= 1.0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share of the time; write a number from 0.01 to 1, such as 0.5"
        )
    return share
