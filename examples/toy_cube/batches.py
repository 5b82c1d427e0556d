"""Training batches out of the shards that `samples` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .architecture import ACTION_MEAN, ACTION_STD, IMAGE, PATCH, STATE_MEAN, STATE_STD
from .samples import CAMERAS, HEIGHT, WIDTH
from .scene import BOWLS, CENTRE, CUBES

Rows = NDArray[np.integer[Any]]
"""Numbers of samples."""
CLASSES = ("background", *CUBES, *BOWLS, "gripper")
_ROWS, _SIDE = HEIGHT // PATCH, IMAGE // PATCH
_SCALE = 0.1
"""Metres that count as 1 in the auxiliary targets."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the auxiliary losses ask for."""

    classes: torch.Tensor
    """Share of each patch by class, (batch, camera, patch, class)."""
    place: torch.Tensor
    """Place of the object that most of the patch's pixels show, (batch, camera, patch, 2): for the
    wrist camera from the hand, for the side camera on the table; in 0.1 m."""
    shown: torch.Tensor
    """Whether the patch shows an object, (batch, camera, patch)."""
    words: torch.Tensor
    """Place of target cube and bowl from the hand, (batch, 2, 2), in 0.1 m."""


class Samples:
    """All samples of some shards, in memory.

    Parameters
    ----------
    directory
        Where the shards are.
    shards
        Use the first so many, in order of name.
    part
        Of these only every so manieth, from which: (number of parts, this part).
    blind
        Show black images.
    """

    def __init__(
        self,
        directory: Path,
        processor: Any,
        *,
        shards: int | None = None,
        part: tuple[int, int] = (1, 0),
        blind: bool = False,
    ) -> None:
        files = sorted(directory.glob("*.npz"))[:shards]
        if not files or (shards is not None and len(files) < shards):
            raise SystemExit(f"{directory}: {len(files)} shards, {shards or 'some'} are needed")
        parts = []
        for file in files[part[1] :: part[0]]:
            with np.load(file) as rows:
                parts.append({key: rows[key] for key in rows})
        self.rows = {key: np.concatenate([rows[key] for rows in parts]) for key in parts[0]}
        self.blind = blind
        texts, index = np.unique(self.rows["instruction"], return_inverse=True)
        blank = [[np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * len(CAMERAS)] * len(texts)
        self._ids = processor(images=blank, text=texts.tolist())["input_ids"][index]
        number = {colour: i for i, colour in enumerate(CLASSES)}
        self._number = np.vectorize(number.__getitem__)(self.rows["colours"])

    def __len__(self) -> int:
        return len(self._ids)

    def inputs(self, rows: Rows, random: torch.Generator | None) -> dict[str, Any]:
        """Model inputs of some samples; slightly perturbed if a generator is given."""
        images = torch.from_numpy(self.rows["image"][rows]).permute(0, 1, 4, 2, 3)
        pixels = images.float() / 127.5 - 1.0
        if self.blind:
            pixels = torch.full_like(pixels, -1.0)
        hand, closed = self.rows["hand"][rows], self.rows["closed"][rows]
        state = np.zeros((len(hand), len(STATE_MEAN)))
        state[:, :3], state[:, -1] = hand, closed
        states = torch.from_numpy((state - STATE_MEAN) / STATE_STD).float()
        if random is not None:
            count = len(pixels)
            gain = 1 + 0.04 * torch.randn(count, len(CAMERAS), 1, 1, 1, generator=random)
            if not self.blind:
                pixels = (pixels + 1) * gain - 1
                pixels = pixels + 0.02 * torch.randn(pixels.shape, generator=random)
            noise = 0.05 * torch.randn(states.shape, generator=random)
            noise[:, 3:7] = 0.0
            states = states + noise
        pixels = torch.nn.functional.pad(pixels, (0, IMAGE - WIDTH, 0, IMAGE - HEIGHT))
        return {
            "input_ids": self._ids[rows],
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones(len(pixels), len(CAMERAS), dtype=torch.bool),
            "state": states,
        }

    def actions(self, rows: Rows) -> torch.Tensor:
        """Return the expert's chunks in normalised units."""
        wanted = self.rows["action"][rows]
        return torch.from_numpy((wanted - np.array(ACTION_MEAN)) / np.array(ACTION_STD)).float()

    def targets(self, rows: Rows) -> Targets:
        """Return what the auxiliary losses ask for."""
        share = self.rows["share"][rows].astype(np.float32) / PATCH**2
        batch, cameras, patches, _ = share.shape
        number = self._number[rows]
        classes = np.zeros((batch, cameras, patches, len(CLASSES)), np.float32)
        for thing in range(4):
            classes[np.arange(batch), :, :, number[:, thing]] += share[..., thing]
        classes[..., -1] = share[..., 4]
        classes[..., 0] = 1.0 - share.sum(-1)
        top = share[..., :4].argmax(-1)
        places = self.rows["place"][rows]
        hand = self.rows["hand"][rows][:, :2]
        place = places[np.arange(batch)[:, None, None], top]
        place[:, 0] -= hand[:, None]
        place[:, 1] -= CENTRE
        words = places[:, [0, 2]] - hand[:, None]
        return Targets(
            torch.from_numpy(classes),
            torch.from_numpy(place / _SCALE).float(),
            torch.from_numpy(share[..., :4].max(-1) > 0.08),
            torch.from_numpy(words / _SCALE).float(),
        )


def image_patches(features: torch.Tensor) -> torch.Tensor:
    """Select the patches that show image: the rest of the grid is padding.

    Parameters
    ----------
    features
        (batch, token, width), the cameras' tokens first.

    Returns
    -------
    (batch, camera, patch, width).
    """
    batch, _, width = features.shape
    grid = features[:, : len(CAMERAS) * _SIDE * _SIDE]
    return grid.reshape(batch, len(CAMERAS), _SIDE, _SIDE, width)[:, :, :_ROWS].flatten(2, 3)
