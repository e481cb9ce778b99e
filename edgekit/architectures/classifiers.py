"""The classifiers: a tiny CNN for small patches, ResNet-18 and MobileNetV2 as torchvision builds them."""

from __future__ import annotations

from edgekit.architectures.network import INPUT, LOGITS, Spec
from edgekit.architectures.writer import Writer

_TINY = (16, 32, 64, 96)
_RESNET = (64, 128, 256, 512)
_MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats, first stride: Sandler et al. 2018 (arXiv 1801.04381), table 2."""
_MOBILE_STEM, _MOBILE_LAST = 32, 1280


def tiny_cnn(net: Writer, spec: Spec) -> tuple[str, ...]:
    """Four 3x3 convolutions of 16 to 96 channels, each but the last followed by 2x2 max pooling: 0.08 M parameters."""
    x = INPUT
    for number, channels in enumerate(_TINY):
        net.block(f"stage{number + 1}")
        x = net.conv(x, "conv", scaled(channels, spec.width))
        x = net.relu(net.norm(x, "norm"), "relu")
        if number < len(_TINY) - 1:
            x = net.max_pool(x, "pool", 2, 2)
    return _classify(net, x, spec)


def resnet18(net: Writer, spec: Spec) -> tuple[str, ...]:
    """He et al. 2016 (arXiv 1512.03385), two basic blocks a stage: 11.2 M parameters at width 1."""
    net.block("stem")
    x = net.conv(INPUT, "conv", scaled(_RESNET[0], spec.width), 7, 2)
    x = net.relu(net.norm(x, "norm"), "relu")
    x = net.max_pool(x, "pool", 3, 2)
    for stage, channels in enumerate(_RESNET):
        for number in range(2):
            net.block(f"stage{stage + 1}.{number + 1}")
            x = _basic(net, x, scaled(channels, spec.width), 2 if stage and not number else 1)
    return _classify(net, x, spec)


def mobilenet_v2(net: Writer, spec: Spec) -> tuple[str, ...]:
    """Sandler et al. 2018 (arXiv 1801.04381): 2.2 M parameters at width 1 without its head."""
    net.block("stem")
    x = net.conv(INPUT, "conv", scaled(_MOBILE_STEM, spec.width), 3, 2)
    x = net.relu6(net.norm(x, "norm"), "relu6")
    number = 0
    for expansion, channels, repeats, stride in _MOBILE:
        for repeat in range(repeats):
            number += 1
            net.block(f"block{number}")
            x = inverted_residual(net, x, scaled(channels, spec.width), expansion, 1 if repeat else stride)
    net.block("last")
    x = net.conv(x, "conv", scaled(_MOBILE_LAST, max(1.0, spec.width)), 1)
    x = net.relu6(net.norm(x, "norm"), "relu6")
    return _classify(net, x, spec)


def inverted_residual(net: Writer, x: str, channels: int, expansion: int, stride: int) -> str:
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1; added to its input where the shapes agree."""
    inside = net.channels(x)
    wide, y = inside * expansion, x
    if expansion != 1:
        y = net.relu6(net.norm(net.conv(y, "expand", wide, 1), "expand_norm"), "expand_relu6")
    y = net.conv(y, "depthwise", wide, 3, stride, group=wide)
    y = net.relu6(net.norm(y, "depthwise_norm"), "depthwise_relu6")
    y = net.norm(net.conv(y, "project", channels, 1), "project_norm")
    return net.add(x, y, "add") if stride == 1 and inside == channels else y


def scaled(channels: int, width: float) -> int:
    """Channels times `width` to the nearest multiple of 8, but never below nine tenths: as MobileNet's authors do."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def _basic(net: Writer, x: str, channels: int, stride: int) -> str:
    y = net.relu(net.norm(net.conv(x, "conv1", channels, 3, stride), "norm1"), "relu1")
    y = net.norm(net.conv(y, "conv2", channels), "norm2")
    if stride != 1 or net.channels(x) != channels:
        x = net.norm(net.conv(x, "shortcut", channels, 1, stride), "shortcut_norm")
    return net.relu(net.add(y, x, "add"), "relu2")


def _classify(net: Writer, x: str, spec: Spec) -> tuple[str, ...]:
    net.block("head")
    return (net.linear(net.mean(x, "mean"), "linear", spec.classes, LOGITS),)
