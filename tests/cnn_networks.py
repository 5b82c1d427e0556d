"""Small convolutional networks for tests: seeded, in and out of place, and with planted filters."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

PERIOD = 4.0
"""Pixels of one wave of a planted grating."""


def vgg_like(seed: int = 0, *, inplace: bool = True) -> nn.Module:
    """VGG's pattern in small, with a classifier that a small image does not fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace),
            nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace),
        )  # fmt: skip
        module = nn.Sequential()
        module.add_module("features", features)
        module.add_module("dropout", nn.Dropout(0.5))
        module.add_module("flat", nn.Flatten())
        module.add_module("classifier", nn.Linear(12 * 16 * 16, 4))
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    return module


def make() -> nn.Module:
    """What a user's ``MODULE:CALLABLE`` names."""
    return vgg_like(torch.initial_seed() % 100)


class Functional(nn.Module):
    """The same two layers with every way of calling a ReLU."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call
        self.relu = nn.ReLU(inplace=call == "module in place")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.first = nn.Conv2d(1, 3, 3, bias=True)
            self.second = nn.Conv2d(3, 2, 1, bias=True)
        with torch.no_grad():  # units that are open and pull the other way: what the rule is about
            weights = torch.tensor([[0.5, -0.1, 0.3], [-0.1, 0.6, -0.1]])
            self.second.weight[:] = weights[:, :, None, None]
            self.first.bias.fill_(0.6)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.call.startswith("module"):
            x = self.relu(x)
        elif self.call == "F.relu":
            x = functional.relu(x)
        elif self.call == "F.relu in place":
            functional.relu(x, inplace=True)
        elif self.call == "torch.relu":
            x = torch.relu(x)
        elif self.call == "Tensor.relu":
            x = x.relu()
        elif self.call == "Tensor.relu_":
            x.relu_()
        elif self.call == "F.relu_":
            functional.relu_(x)
        y: torch.Tensor = self.second(x)
        return y.relu_()


def gratings(angles: list[float], size: int = 9) -> nn.Module:
    """One convolution whose filters are windowed gratings; angle 0: stripes are vertical."""
    conv = nn.Conv2d(1, len(angles), size, padding=size // 2, bias=False)
    at = np.arange(size) - size // 2
    y, x = np.meshgrid(at, at, indexing="ij")
    window = np.exp(-(x**2 + y**2) / (2 * (size / 4) ** 2))
    for number, angle in enumerate(angles):
        along = x * np.cos(angle) + y * np.sin(angle)
        wave = np.sin(2 * np.pi * along / PERIOD) * window
        with torch.no_grad():
            conv.weight[number, 0] = torch.from_numpy(wave)
    return nn.Sequential(conv)
