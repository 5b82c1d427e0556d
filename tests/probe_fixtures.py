"""A policy whose action provably depends on one patch of one camera, and stores to probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from attnstore.ingest.policies.base import Batch, Observation, PhaseShape, Sample
from attnstore.ingest.policies.hooks import HookedPolicy, Watched
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Axis, Span, TokenLayout

GRID = (4, 4)
DOF, PADDED, HORIZON = 3, 5, 2
POINTING, ASTRAY = 0, 1
"""Layers: the map of the first points at the patch that the action depends on."""


class Look(torch.nn.Module):
    """Attention that is what it is made with."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, batch: int) -> tuple[None, torch.Tensor]:
        return None, self.weights.expand(batch, *self.weights.shape)


class PlantedPolicy(HookedPolicy):
    """Its action depends on the mean brightness of one patch of one camera, and on the noise."""

    name, checkpoint, dtype, digest, device = "planted", "in memory", "float32", "0" * 64, "cpu"
    horizon, action_dof, denoiser_steps, real_dof = HORIZON, PADDED, False, DOF

    def __init__(
        self, geometry: Mapping[str, Geometry], camera: str, patch: int, astray: int
    ) -> None:
        self.geometry, self.camera, self.patch = dict(geometry), camera, patch
        spans, start = [], 0
        for name, form in self.geometry.items():
            count = form.grid[0] * form.grid[1]
            spans.append(
                Span(
                    f"image:{name}",
                    "image",
                    start,
                    start + count,
                    start,
                    camera=name,
                    grid=form.grid,
                )
            )
            start += count
        self.axis = Axis(tuple(spans))
        action = Span("action", "action", 0, HORIZON, 0)
        self.layout = TokenLayout("joint", Axis((action,)), self.axis)
        self.looks = [Look(self._weights(p)) for p in (patch, astray)]

    def _weights(self, patch: int) -> torch.Tensor:
        weights = torch.full((2, HORIZON, len(self.axis)), 0.2 / len(self.axis))
        for span in self.axis:
            weights[:, :, span.start + patch] += 0.8 / len(self.geometry)
        return weights / weights.sum(-1, keepdim=True)

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        return {"joint": PhaseShape(2, 2, None, ("action",))}

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        samples = tuple(Sample({"joint": self.layout}, self.geometry) for _ in observations)
        return Batch({"observations": list(observations)}, samples)

    def act(self, batch: Batch) -> torch.Tensor:
        for look in self.looks:
            look(len(batch))
        return torch.stack([self._act(o) for o in batch.inputs["observations"]])

    def _act(self, observation: Observation) -> torch.Tensor:
        # Independent of the code under test: the patch's box in the letterboxed input.
        shown = observation.images[self.camera].astype(np.float64)
        box = planted_pixels(self.geometry[self.camera], self.patch)
        brightness = float(shown[box].mean()) / 255
        noise = torch.randn(
            HORIZON, PADDED, generator=torch.Generator().manual_seed(observation.seed)
        )
        direction = torch.zeros(HORIZON, PADDED)
        direction[:, 1] = 4.0
        # Padded components are noise of their own and must not count.
        return noise + brightness * direction

    def watched(self) -> Sequence[Watched]:
        return [Watched("joint", i, look) for i, look in enumerate(self.looks)]

    @contextmanager
    def eager(self) -> Iterator[None]:
        yield


def planted_pixels(geometry: Geometry, patch: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Pixels of the source whose centre lies in a patch of a letterbox, pixel by pixel."""
    height, width = geometry.source
    found = np.zeros((height, width), bool)
    row, col = divmod(patch, geometry.grid[1])
    for y in range(height):
        for x in range(width):
            v = (y + 0.5) * geometry.resized[0] / height + geometry.offset[0]
            u = (x + 0.5) * geometry.resized[1] / width + geometry.offset[1]
            found[y, x] = (int(v // geometry.patch[0]), int(u // geometry.patch[1])) == (row, col)
    return found
