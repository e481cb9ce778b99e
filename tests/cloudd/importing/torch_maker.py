"""Writes files of PyTorch: `torch_maker.py FOLDER MARKER`, under an interpreter that has it.

The network sorts pictures by brightness, as those of foreign_models. `evil.pt2` would open MARKER for writing if
anybody unpickled it.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found,unused-ignore]
from torch import nn  # type: ignore[import-not-found,unused-ignore]


class Evil:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self._path), "w")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, :, 1, 1] = 1 / 3
            self.bn.running_var.fill_(1 - 1e-5)
            centres = (torch.arange(3) + 0.5) / 3
            self.fc.weight.copy_((120 * centres)[:, None].repeat(1, 4) / 4)
            self.fc.bias.copy_(-60 * centres**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def main(folder: Path, marker: Path) -> None:
    net, x = Net().eval(), torch.zeros(1, 3, 16, 16)
    torch.jit.script(net).save(str(folder / "scripted.pt"))
    torch.jit.trace(net, x).save(str(folder / "traced.pt"))
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "whole.pt")
    batch = {0: torch.export.Dim("batch")}
    for name, model, example, dynamic in (
        ("static", net, x, None),
        ("open", net, torch.zeros(2, 3, 16, 16), (batch,)),
        ("eight", net, torch.zeros(8, 3, 16, 16), None),
        ("training", Net().train(), x, None),
    ):
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=dynamic), folder / f"{name}.pt2")
    # As most people export: the exporter folds BatchNormalization.
    names = {"input_names": ["image"], "output_names": ["scores"]}
    torch.onnx.export(net, (x,), str(folder / "folded.onnx"), dynamo=False, opset_version=17, **names)
    torch.save(Evil(marker), folder / "evil.pkl")
    with zipfile.ZipFile(folder / "static.pt2") as good, zipfile.ZipFile(folder / "evil.pt2", "w") as bad:
        for entry in good.infolist():
            example_inputs = "sample_inputs" in entry.filename  # which torch reads with a pickle
            bad.writestr(entry.filename, (folder / "evil.pkl").read_bytes() if example_inputs else good.read(entry))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
