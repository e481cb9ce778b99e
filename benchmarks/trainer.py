"""Trains models with PyTorch and exports them to ONNX. Runs in the benchmark's own interpreter, never in a daemon's.

    python benchmarks/trainer.py DATA.npz OUT.onnx '{"net": "tiny", "width": 8, ...}' [OUT2.onnx '{...}']

DATA.npz: `x` uint8 (n, 80, 80), `y` int64 (n,), `classes`, `rotatable`. Options: see `Options`. Prints one JSON line
for each model. The views of a picture are cut, mirrored, turned, lit and blurred anew in every epoch.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 64


@dataclass(frozen=True)
class Options:
    net: str  # tiny (edge) or residual (cloud)
    width: int
    seconds: float  # training ends after so many seconds of CPU time ...
    epochs: int  # ... or after so many passes ...
    wall: float = 1e9  # ... or after so many seconds on the wall, whichever comes first
    stem: int = 2  # stride of the first layer
    rate: float = 3e-3
    smoothing: float = 0.05
    seed: int = 0


def block(i: int, o: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Tiny(nn.Module):
    """A few thousand parameters, depthwise separable: what a small device runs in well under a millisecond."""

    def __init__(self, classes: int, width: int, stem: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [block(1, width, stem)]
        for i, o in ((width, 2 * width), (2 * width, 3 * width), (3 * width, 4 * width)):
            layers += [block(i, i, 2, i), block(i, o, kernel=1)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.a = block(i, o, stride)
        self.b = nn.Sequential(nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o))
        self.skip: nn.Module = nn.Identity()
        if i != o or stride != 1:
            self.skip = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.b(self.a(x)) + self.skip(x))


class Large(nn.Module):
    def __init__(self, classes: int, w: int, stem: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(1, w, stem),
            Residual(w, w, 1),
            Residual(w, 2 * w, 2),
            Residual(2 * w, 4 * w, 2),
            Residual(4 * w, 4 * w, 2),
        )
        self.head = nn.Linear(4 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def views(x: Tensor, rotatable: bool, generator: torch.Generator) -> Tensor:
    """Random views (n, 1, 64, 64) of pictures (n, 80, 80) in 0..255, normalised to -1..1."""
    n, large, _ = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape or (n,), generator=generator)

    angle = uniform(-0.12, 0.12)
    if rotatable:
        angle = angle + torch.pi / 2 * torch.randint(0, 4, (n,), generator=generator)
    zoom = uniform(0.92, 1.08) * SIDE / large
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    upside = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if rotatable else torch.ones(n)
    reach = (large - SIDE) / large * 0.75
    rows = torch.stack(
        [
            torch.stack([zoom * angle.cos() * flip, -zoom * angle.sin() * upside, uniform(-reach, reach)], 1),
            torch.stack([zoom * angle.sin() * flip, zoom * angle.cos() * upside, uniform(-reach, reach)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(rows, [n, 1, SIDE, SIDE], align_corners=False)
    out = functional.grid_sample(x[:, None] / 127.5 - 1, grid, padding_mode="reflection", align_corners=False)
    contrast, light = uniform(0.8, 1.2, n, 1, 1, 1), uniform(-0.15, 0.15, n, 1, 1, 1)
    noise = uniform(0.0, 0.12, n, 1, 1, 1) * torch.randn(out.shape, generator=generator)
    return (out * contrast + light + noise).contiguous(memory_format=torch.channels_last)


def fit(model: nn.Module, x: Tensor, y: Tensor, classes: int, rotatable: bool, options: Options) -> dict[str, Any]:
    """One-cycle AdamW; the schedule follows what runs out first, epochs or CPU time. Rare classes weigh more."""
    generator = torch.Generator().manual_seed(options.seed)
    frequency = torch.bincount(y, minlength=classes).float().clamp(min=1)
    weight = frequency.rsqrt() / frequency.rsqrt().mean()
    optimiser = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.02)
    size, began, wall = min(64, len(x)), time.process_time(), time.monotonic()
    total, step, loss = options.epochs * max(1, len(x) // size), 0, torch.zeros(())
    model.train()
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - size + 1, size):
            spent = (time.process_time() - began) / options.seconds, (time.monotonic() - wall) / options.wall
            progress = max(step / total, *spent)
            if progress >= 1:
                return {"steps": step, "epochs": round(step * size / len(x), 1), "loss": round(float(loss), 4)}
            rise = min(1.0, progress / 0.15)
            for group in optimiser.param_groups:
                group["lr"] = options.rate * rise * (0.5 + 0.5 * float(np.cos(np.pi * progress)) + 1e-3)
            chosen = order[start : start + size]
            batch = views(x[chosen].float(), rotatable, generator)
            out = model(batch)
            loss = functional.cross_entropy(out, y[chosen], weight=weight, label_smoothing=options.smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1


def train(data: str, out: str, options: Options) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    with np.load(data) as archive:
        x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
        classes, rotatable = int(archive["classes"]), bool(archive["rotatable"])
    net = Tiny if options.net == "tiny" else Large
    model = net(classes, options.width, options.stem)
    began = time.process_time()
    result = fit(model.to(memory_format=torch.channels_last), x, y, classes, rotatable, options)
    model = model.to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(1, 1, SIDE, SIDE)
    # The older exporter: a hundred times faster, no further package, and enough for a plain network.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.onnx.export(model, (example,), out, input_names=["image"], output_names=["logits"], dynamo=False)
    result["parameters"] = sum(p.numel() for p in model.parameters())
    result["cpu_s"] = round(time.process_time() - began, 1)
    return result


def main() -> None:
    torch.set_num_threads(1)
    data, *models = sys.argv[1:]
    for out, options in zip(models[::2], models[1::2], strict=True):
        print(json.dumps(train(data, out, Options(**json.loads(options)))), flush=True)


if __name__ == "__main__":
    main()
