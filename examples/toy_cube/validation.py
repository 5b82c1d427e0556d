"""Errors on held-out states, by kind of state: an average over an episode hides the first frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .architecture import ACTION_MEAN, ACTION_STD
from .batches import Samples
from .losses import Probes, prefix, word_places

KINDS = ("start", "approach", "near", "held")


@torch.no_grad()
def validate(model: Any, probes: Probes, samples: Samples, count: int = 400) -> dict[str, float]:
    """Measure the policy on the first `count` samples, always with the same noise.

    Returns
    -------
    ``xy_{kind}``: mean distance in cm between the places that the policy's and the expert's last
    action command. ``gripper``: share of gripper commands on the right side of one half.
    ``word_cube``, ``word_bowl``: mean error in cm of the places that the auxiliary read-out of the
    words gives at the start, after the last layer but one.
    """
    random = torch.Generator().manual_seed(0)
    found, told = [], []
    for first in range(0, count, 50):
        rows = np.arange(first, min(first + 50, count))
        inputs = samples.inputs(rows, None)
        shape = (len(rows), model.config.chunk_size, model.config.max_action_dim)
        noise = torch.randn(shape, generator=random)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model.sample_actions(**inputs, noise=noise).float().numpy())
            told.append(word_places(probes, prefix(model, inputs)[1].hidden_states)[:, 1].numpy())
    actions = np.concatenate(found) * np.array(ACTION_STD) + np.array(ACTION_MEAN)
    wanted, kind = samples.rows["action"][:count], samples.rows["kind"][:count]
    error = 100 * np.hypot(*(actions - wanted)[:, -1, :2].T)
    result = {f"xy_{name}": float(error[kind == name].mean()) for name in KINDS}
    result["gripper"] = float(((actions[..., 3] > 0.5) == (wanted[..., 3] > 0.5)).mean())
    words = samples.rows["place"][:count][:, [0, 2]] - samples.rows["hand"][:count, None, :2]
    off = 10 * np.linalg.norm(np.concatenate(told) - words / 0.1, axis=-1)[kind == "start"].mean(0)
    return {**result, "word_cube": float(off[0]), "word_bowl": float(off[1])}
