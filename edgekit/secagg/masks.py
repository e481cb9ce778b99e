"""Adding and removing masks: key streams as vectors of words, in blocks that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from edgekit.secagg.messages import Prg

Words = NDArray[np.unsignedinteger[Any]]
"""A vector modulo 2^32 or 2^16: dtype "<u4" or "<u2"."""
_BLOCK = 1 << 17  # with the zeros and the key stream it fits the second-level cache of small cores
_STREAMS = 256  # at once: a context has a few KiB, and a round with dropouts may need tens of thousands
_ZEROS = bytes(_BLOCK)
_SLACK = 16  # update_into wants a buffer longer than its input by a cipher block


@dataclass(frozen=True)
class Mask:
    """The key of a stream that is used for nothing else, and whether the stream is added or subtracted."""

    key: bytes
    add: bool

    def removed(self) -> Mask:
        """The mask that takes this one off again."""
        return Mask(self.key, not self.add)


def dtype(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Of words of 32 or 16 bits, little endian on every machine."""
    return np.dtype(f"<u{bits // 8}")


def apply(words: Words, masks: Sequence[Mask], prg: Prg) -> None:
    """Add the masks to `words`, shape (m,), in place and modulo their size.

    Takes about 0.7 ms a mask and million 32-bit words where the processor has AES instructions; releases the GIL while
    it encrypts, so masks of different vectors may be applied by the caller's threads.
    """
    buffer = bytearray(_BLOCK + _SLACK)
    stream = np.frombuffer(buffer, words.dtype, count=_BLOCK // words.itemsize)
    for first in range(0, len(masks), _STREAMS):
        batch = [
            (_stream(mask.key, prg).update_into, np.add if mask.add else np.subtract)
            for mask in masks[first : first + _STREAMS]
        ]
        for start in range(0, len(words), stream.size):
            block = words[start : start + stream.size]
            zeros = memoryview(_ZEROS)[: block.nbytes]
            key_stream = stream[: block.size]
            for update_into, combine in batch:
                update_into(zeros, buffer)
                combine(block, key_stream, out=block)


def _stream(key: bytes, prg: Prg) -> CipherContext:
    """A fresh key for every mask, so that the counter may start at zero."""
    if prg == "aes-256-ctr":
        return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
