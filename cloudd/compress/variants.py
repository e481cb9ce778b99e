"""The kinds of variant that can be made; a new kind is a maker and one more line here."""

from __future__ import annotations

from dataclasses import dataclass

from cloudd.compress import half, pruned, quantise
from cloudd.compress.maker import Maker
from edgekit.packages.manifest import Precision


@dataclass(frozen=True)
class Kind:
    """One kind of variant.

    `careful`: its maker knows a second, more careful way. `leads`: it stands in front of the float model in the
    package, for whatever runs a model without measuring first; what only some hardware likes stands behind it.
    `taught`: it is trained, which takes minutes where the others take seconds.
    """

    name: str
    about: str
    precision: Precision
    make: Maker
    careful: bool
    leads: bool
    taught: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("u8s8", "8 bits, unsigned activations, for x86", "int8", quantise.u8s8, careful=True, leads=True),
        Kind("s8s8", "8 bits, signed activations, for Arm", "int8", quantise.s8s8, careful=True, leads=True),
        Kind("fp16", "half precision, for GPUs", "fp16", half.fp16, careful=False, leads=False),
        Kind("pruned", "narrower layers, taught anew", "fp32", pruned.floats, careful=True, leads=False, taught=True),
        Kind("pruned-u8s8", "the same in 8 bits, for x86", "int8", pruned.u8s8, careful=True, leads=True, taught=True),
    )
}

QUICK = tuple(kind.name for kind in KINDS.values() if not kind.taught)
"""The kinds that need no training."""
