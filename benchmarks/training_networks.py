"""The networks of the training benchmark as ONNX: the product's own, and MobileNetV3-Small, which it does not have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.architectures import Network, Spec, build
from edgekit.architectures.classifiers import scaled
from edgekit.architectures.network import INPUT, LOGITS
from edgekit.architectures.writer import Writer

CLASSES = 4
SMALL: tuple[tuple[int, int, int, int, int, str], ...] = (
    *((16, 16, 3, 2, 1, "relu"), (72, 24, 3, 2, 0, "relu"), (88, 24, 3, 1, 0, "relu"), (96, 40, 5, 2, 1, "hard")),
    *((240, 40, 5, 1, 1, "hard"), (240, 40, 5, 1, 1, "hard"), (120, 48, 5, 1, 1, "hard"), (144, 48, 5, 1, 1, "hard")),
    *((288, 96, 5, 2, 1, "hard"), (576, 96, 5, 1, 1, "hard"), (576, 96, 5, 1, 1, "hard")),
)
"""Wide channels, channels, kernel, stride, squeeze-and-excitation, activation: Howard et al. 2019 (arXiv 1905.02244),
table 2."""


@dataclass(frozen=True)
class Kind:
    """`side`: of the square pictures. `last`: how many blocks the variant `last` trains, the head among them."""

    title: str
    side: int
    last: int


KINDS = {
    "tiny_cnn": Kind("small CNN", 64, 2),
    "resnet18": Kind("ResNet-18", 64, 3),
    "mobilenet_v2": Kind("MobileNetV2", 96, 6),
    "mobilenet_v3": Kind("MobileNetV3-S", 96, 5),
}


class HardWriter(Writer):
    """With the layers that only MobileNetV3 has."""

    def hard_swish(self, x: str, name: str) -> str:
        return self._add("HardSwish", [x], name, self._shapes[x])

    def squeezed(self, x: str, name: str) -> str:
        """Every channel times a factor that the means of all channels say (squeeze-and-excitation)."""
        count = self.channels(x)
        y = self._add("GlobalAveragePool", [x], f"{name}_pool", (count, 1, 1))
        y = self.relu(self.conv(y, f"{name}_reduce", scaled(count, 0.25), 1, bias=0.0), f"{name}_relu")
        y = self.conv(y, f"{name}_expand", count, 1, bias=0.0)
        y = self._add("HardSigmoid", [y], f"{name}_gate", (count, 1, 1), alpha=1 / 6, beta=0.5)
        return self._add("Mul", [x, y], name, self._shapes[x])

    def activated(self, x: str, name: str, kind: str) -> str:
        return self.hard_swish(x, name) if kind == "hard" else self.relu(x, name)


def network(name: str) -> Network:
    """The network with random weights, always the same."""
    side = KINDS[name].side
    if name != "mobilenet_v3":
        return build(Spec(architecture=name, classes=CLASSES, input_width=side, input_height=side))  # type: ignore[arg-type]
    net = HardWriter(side, side, 3, np.random.default_rng(0))
    net.block("stem")
    x = net.hard_swish(net.norm(net.conv(INPUT, "conv", 16, 3, 2), "norm"), "act")
    for number, (wide, out, kernel, stride, squeeze, kind) in enumerate(SMALL, 1):
        net.block(f"block{number}")
        inside, y = net.channels(x), x
        if wide != inside:
            y = net.activated(net.norm(net.conv(y, "expand", wide, 1), "expand_norm"), "expand_act", kind)
        y = net.norm(net.conv(y, "depthwise", wide, kernel, stride, group=wide), "depthwise_norm")
        y = net.activated(y, "depthwise_act", kind)
        if squeeze:
            y = net.squeezed(y, "squeeze")
        y = net.norm(net.conv(y, "project", out, 1), "project_norm")
        x = net.add(x, y, "add") if stride == 1 and inside == out else y
    net.block("last")
    x = net.hard_swish(net.norm(net.conv(x, "conv", 576, 1), "norm"), "act")
    net.block("head")
    x = net.hard_swish(net.linear(net.mean(x, "mean"), "hidden", 1024, "hidden"), "act")
    model, blocks = net.finish(name, (net.linear(x, "linear", CLASSES, LOGITS),))
    spec = Spec(architecture="mobilenet_v2", classes=CLASSES, input_width=side, input_height=side)
    return Network(spec, model, blocks)
