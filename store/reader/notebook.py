"""What a notebook shows of an episode."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..format.views import is_current
from ..rules import mean_over_keyframes, standing_step

if TYPE_CHECKING:
    from .episode import Episode

_CELL = 9


def episode_html(episode: Episode) -> str:
    """Return an HTML summary with one layer x head picture per phase and camera.

    Colour is the share of attention on the camera's image, mean over keyframes, at the step that
    stands for the phase.
    """
    spec = episode.spec
    rows = [
        ("run", episode.run),
        ("episode", episode.name),
        ("outcome", episode.outcome),
        ("instruction", episode.instruction),
        ("keyframes", f"{len(spec.frames)} (frames {spec.frames[0]} to {spec.frames[-1]})"),
        ("precision", spec.precision),
    ]
    rows += [
        (
            name,
            f"{p.layers} layers x {p.heads} heads"
            + (f" x {p.steps} steps" if p.steps is not None else "")
            + f", {len(p.query)} queries x {len(p.key)} keys",
        )
        for name, p in spec.phases.items()
    ]
    table = "".join(
        f"<tr><th style='text-align:left'>{escape(k)}</th><td style='text-align:left'>{escape(v)}</td></tr>"
        for k, v in rows
    )
    pictures = "".join(
        f"<figure style='display:inline-block;margin:4px 12px 4px 0'>{_matrix(share)}"
        f"<figcaption style='font-size:smaller'>{escape(phase)}, {escape(camera)}: "
        f"share of attention, layer (down) by head; darkest {float(np.nanmax(share)):.2f}</figcaption></figure>"
        for phase in episode.phases
        for camera in episode.cameras
        if is_current(camera)
        for share in [_share(episode, phase, camera)]
    )
    return f"<div><table>{table}</table>{pictures}</div>"


def _share(episode: Episode, phase: str, camera: str) -> NDArray[np.float32]:
    """(layer, head)."""
    step = standing_step(phase, episode.steps(phase))
    return mean_over_keyframes(episode.stats(phase, camera, "camera_mass", step=step).values)


def _matrix(values: NDArray[np.float32]) -> str:
    layers, heads = values.shape
    top = float(np.nanmax(values)) or 1.0
    cells = "".join(
        f"<rect x='{head * _CELL}' y='{layer * _CELL}' width='{_CELL}' height='{_CELL}' "
        f"fill='#08306b' fill-opacity='{max(0.0, float(values[layer, head])) / top:.3f}'>"
        f"<title>L{layer:02d} H{head:02d}: {values[layer, head]:.4f}</title></rect>"
        for layer in range(layers)
        for head in range(heads)
    )
    width, height = heads * _CELL, layers * _CELL
    return (
        f"<svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img' "
        f"style='border:1px solid #888'>{cells}</svg>"
    )
