"""The PyTorch half of train_models: `train_networks.py FOLDER EPOCHS` reads *.npz there and writes *.onnx."""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SMALL_SIDE = int(os.environ["SMALL_SIDE"])
folder, epochs = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def network(width: int, depth: int, classes: int) -> nn.Sequential:
    layers = [block(3, width, 2)]
    for stage in range(3):
        channels = width * 2**stage
        layers += [block(channels, channels, 1) for _ in range(depth - 1)]
        layers.append(block(channels, channels * 2 if stage < 2 else channels, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 4, classes))


def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = np.load(f"{folder}/{name}.npz")
    pictures = torch.from_numpy(data["pictures"]).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.from_numpy(data["labels"])


def prepare(pictures: torch.Tensor, side: int) -> torch.Tensor:
    x = (pictures.float() - 127.5) / 127.5
    return x if x.shape[-1] == side else functional.interpolate(x, (side, side), mode="area")


def train(model: nn.Module, side: int, rate: float) -> None:
    pictures, labels = load("train")
    test_pictures, test_labels = load("test")
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(labels))
        for start in range(0, len(order) - 63, 64):
            chosen = order[start : start + 64]
            x = prepare(pictures[chosen], side)
            flip = torch.rand(2) < 0.5
            if flip[0]:
                x = x.flip(3)
            if flip[1]:
                x = x.flip(2)
            loss = functional.cross_entropy(model(x), labels[chosen], label_smoothing=0.02)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            guesses = torch.cat([model(prepare(part, side)).argmax(1) for part in test_pictures.split(500)])
        accuracy = (guesses == test_labels).float().mean()
        print(f"epoch {epoch + 1} of {epochs}: test accuracy {accuracy:.3f}", flush=True)


for name, side, width, depth, rate in (("small", SMALL_SIDE, 8, 1, 6e-3), ("large", 64, 16, 2, 3e-3)):
    model = network(width, depth, 5)
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {side}x{side} pixels", flush=True)
    train(model, side, rate)
    example = torch.zeros(1, 3, side, side)
    torch.onnx.export(model, (example,), f"{folder}/{name}.onnx", input_names=["input"], output_names=["logits"],
                      opset_version=17, dynamo=False)  # fmt: skip
