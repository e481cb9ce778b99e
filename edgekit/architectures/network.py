"""What a built-in network is: its specification, its ONNX model, and its blocks from the input to the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    import onnx

INPUT = "image"
"""Name of the only input, float32 [N, channels, height, width]."""
LOGITS = "logits"
"""Name of a classifier's only output, float32 [N, classes]."""
HEAT, SIZE, OFFSET = "heat", "size", "offset"
"""Names of the centre-point detector's outputs, in the order that the head `centernet` reads them."""


class ArchitectureError(ValueError):
    """A network that cannot be built as it was asked for; the text says why."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be built. `width` multiplies the channels of every layer (not the classes), rounded to multiples of 8.

    Equal specifications give equal models, bit for bit, with the same release of numpy.
    """

    architecture: Literal["tiny_cnn", "resnet18", "mobilenet_v2", "centre_point"]
    classes: Annotated[int, Meta(ge=1, le=10_000)]
    input_width: Annotated[int, Meta(ge=16, le=2048)]  # pixels
    input_height: Annotated[int, Meta(ge=16, le=2048)]  # pixels
    channels: Literal[1, 3] = 3  # grey or colour
    width: Annotated[float, Meta(ge=0.1, le=4.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


@dataclass(frozen=True)
class Block:
    """One block of a network and the names of its trainable parameters."""

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A network as ONNX (opset 18, free batch, BatchNormalization not folded) and its blocks in forward order.

    The last block is the head: what a new set of classes replaces.
    """

    spec: Spec
    model: onnx.ModelProto
    blocks: tuple[Block, ...]

    def parameters(self, last: int | None = None) -> tuple[str, ...]:
        """Trainable parameters of the last `last` blocks (1: the head only), or of all of them.

        Raises ArchitectureError for a number outside 1 to the number of blocks.
        """
        if last is None:
            last = len(self.blocks)
        if not 1 <= last <= len(self.blocks):
            raise ArchitectureError(f"{last} blocks were asked for; the network has 1 to {len(self.blocks)}")
        return tuple(name for block in self.blocks[-last:] for name in block.parameters)
