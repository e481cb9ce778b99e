"""The same networks as `torch.nn.Module`s, trained as one trains with PyTorch. Runs in the benchmark's own interpreter.

Modules are named as the blocks and layers of the ONNX networks, so that weights and gradients are exchanged by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = dict[str, NDArray[Any]]
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def conv(inside: int, out: int, kernel: int = 3, stride: int = 1, group: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=group, bias=False)


class Stage(nn.Module):
    def __init__(self, inside: int, out: int, act: nn.Module, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(inside, out, kernel, stride), nn.BatchNorm2d(out), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Head(nn.Module):
    def __init__(self, inside: int, classes: int, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Linear(inside, hidden) if hidden else None
        self.act = nn.Hardswish(inplace=True)
        self.linear = nn.Linear(hidden or inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.linear(x if self.hidden is None else self.act(self.hidden(x)))


class Basic(nn.Module):
    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(inside, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = conv(out, out), nn.BatchNorm2d(out)
        self.shortcut = self.shortcut_norm = None
        if stride != 1 or inside != out:
            self.shortcut, self.shortcut_norm = conv(inside, out, 1, stride), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return self.relu(y + x)


class Inverted(nn.Module):
    def __init__(
        self, inside: int, wide: int, out: int, kernel: int, stride: int, act: nn.Module, squeeze: int = 0
    ) -> None:
        super().__init__()
        self.expand = self.expand_norm = None
        if wide != inside:
            self.expand, self.expand_norm = conv(inside, wide, 1), nn.BatchNorm2d(wide)
        self.depthwise, self.depthwise_norm = conv(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide)
        self.squeeze_reduce = nn.Conv2d(wide, squeeze, 1) if squeeze else None
        self.squeeze_expand = nn.Conv2d(squeeze, wide, 1) if squeeze else None
        self.project, self.project_norm = conv(wide, out, 1), nn.BatchNorm2d(out)
        self.act, self.relu, self.gate = act, nn.ReLU(inplace=True), nn.Hardsigmoid()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.adds = stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.act(self.expand_norm(self.expand(y)))
        y = self.act(self.depthwise_norm(self.depthwise(y)))
        if self.squeeze_reduce is not None and self.squeeze_expand is not None:
            y = y * self.gate(self.squeeze_expand(self.relu(self.squeeze_reduce(self.pool(y)))))
        y = self.project_norm(self.project(y))
        return x + y if self.adds else y


class Tiny(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 96)
        for i in range(4):
            setattr(self, f"stage{i + 1}", Stage(widths[i], widths[i + 1], nn.ReLU(inplace=True)))
        self.pool, self.head = nn.MaxPool2d(2), Head(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stage1(x))
        x = self.pool(self.stage2(x))
        return self.head(self.stage4(self.pool(self.stage3(x))))


class ResNet18(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.pool = Stage(3, 64, nn.ReLU(inplace=True), 7, 2), nn.MaxPool2d(3, 2, 1)
        inside = 64
        for index, out in enumerate((64, 128, 256, 512)):
            blocks = {"1": Basic(inside, out, 2 if index else 1), "2": Basic(out, out, 1)}
            setattr(self, f"stage{index + 1}", nn.ModuleDict(blocks))
            inside = out
        self.head = Head(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage.values():
                x = block(x)
        return self.head(x)


class Mobile(nn.Module):
    """Either MobileNet. rows: wide channels, channels, kernel, stride, squeezed channels, activation of each block."""

    def __init__(
        self,
        rows: Sequence[tuple[int, int, int, int, int, type[nn.Module]]],
        act: type[nn.Module],
        stem: int,
        last: int,
        head: Head,
    ) -> None:
        super().__init__()
        self.stem, self.count, inside = Stage(3, stem, act(inplace=True), 3, 2), len(rows), stem
        for number, (wide, out, kernel, stride, squeeze, kind) in enumerate(rows, 1):
            setattr(self, f"block{number}", Inverted(inside, wide, out, kernel, stride, kind(inplace=True), squeeze))
            inside = out
        self.last, self.head = Stage(inside, last, act(inplace=True), 1), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(self.count):
            x = getattr(self, f"block{number + 1}")(x)
        return self.head(self.last(x))


def mobilenet_v2(classes: int) -> nn.Module:
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    rows: list[tuple[int, int, int, int, int, type[nn.Module]]] = []
    inside = 32
    for times, out, repeats, stride in table:
        for repeat in range(repeats):
            rows.append((inside * times, out, 3, 1 if repeat else stride, 0, nn.ReLU6))
            inside = out
    return Mobile(rows, nn.ReLU6, 32, 1280, Head(1280, classes))


def mobilenet_v3(classes: int) -> nn.Module:
    re, hs = nn.ReLU, nn.Hardswish
    rows: list[tuple[int, int, int, int, int, type[nn.Module]]] = [
        *((16, 16, 3, 2, 8, re), (72, 24, 3, 2, 0, re), (88, 24, 3, 1, 0, re), (96, 40, 5, 2, 24, hs)),
        *((240, 40, 5, 1, 64, hs), (240, 40, 5, 1, 64, hs), (120, 48, 5, 1, 32, hs), (144, 48, 5, 1, 40, hs)),
        *((288, 96, 5, 2, 72, hs), (576, 96, 5, 1, 144, hs), (576, 96, 5, 1, 144, hs)),
    ]
    return Mobile(rows, hs, 16, 576, Head(576, classes, 1024))


MODULES = {"tiny_cnn": Tiny, "resnet18": ResNet18, "mobilenet_v2": mobilenet_v2, "mobilenet_v3": mobilenet_v3}


def module(name: str, weights: Arrays) -> tuple[nn.Module, dict[str, str]]:
    """The network with these weights, and the ONNX name of each of its tensors. Raises if they do not match exactly."""
    classes = len(weights["head.linear.bias"])
    net: nn.Module = MODULES[name](classes)
    norms = {key for key, one in net.named_modules() if isinstance(one, nn.BatchNorm2d)}
    names = {}
    for key in net.state_dict():
        owner, _, kind = key.rpartition(".")
        if kind != "num_batches_tracked":
            names[key] = f"{owner}.{_NORM[kind] if owner in norms else kind}"
    counters = {key: value for key, value in net.state_dict().items() if key not in names}
    net.load_state_dict({**counters, **{key: torch.from_numpy(weights[name]) for key, name in names.items()}})
    if set(names.values()) != set(weights):
        raise ValueError(f"other weights: {sorted(set(names.values()) ^ set(weights))[:4]}")
    return net, names


class TorchSide:
    """One network in training: cross entropy, SGD with momentum, what is not trained frozen with its statistics."""

    def __init__(
        self, name: str, weights: Arrays, trained: Sequence[str], train_norms: bool, threads: int, rate: float
    ) -> None:
        torch.set_num_threads(threads)
        self._name, self._weights, self._trained = name, weights, set(trained)
        self._net = self._prepared(train_norms)[0]
        chosen = [one for one in self._net.parameters() if one.requires_grad]
        self._optimiser = torch.optim.SGD(chosen, lr=rate, momentum=0.9)

    def step(self, images: NDArray[Any], labels: NDArray[Any]) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self._net(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        self._optimiser.step()
        return loss.item()

    def gradients(self, images: NDArray[Any], labels: NDArray[Any], train_norms: bool, double: bool) -> Arrays:
        """Of the first weights, by their ONNX names."""
        net, names = self._prepared(train_norms)
        x = torch.from_numpy(images)
        if double:
            net, x = net.double(), x.double()
        nn.functional.cross_entropy(net(x), torch.from_numpy(labels)).backward()
        return {names[key]: one.grad.numpy() for key, one in net.named_parameters() if one.grad is not None}

    def _prepared(self, train_norms: bool) -> tuple[nn.Module, dict[str, str]]:
        net, names = module(self._name, self._weights)
        for key, one in net.named_parameters():
            one.requires_grad_(names[key] in self._trained)
        return net.train(train_norms), names


def load(path: str) -> Arrays:
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}
