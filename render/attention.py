"""Pictures of what follows from attention: a rollout on every camera, a map for every word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from attnstore.store.errors import EpisodeError

from .cnn.sheet import Cell, in_rows, sheet
from .picture import heatmap, image_file, overlay
from .picture.look import Look
from .picture.panel import Pane, Panel
from .picture.scale import data_limits
from .picture.scene import decode_frame
from .picture.source import EpisodeMaps

HEIGHT = 220
"""Of one word's picture, in pixels."""


def draw_rollout(
    episode: EpisodeMaps, maps: Mapping[str, xr.DataArray], out: Path, look: Look | None = None
) -> Path:
    """Draw a rollout beside the images that the policy saw.

    Parameters
    ----------
    maps
        By camera, of one keyframe, as `attnstore.query.attention.rollout_map` gives them.
    out
        File; its ending is the format.

    Raises
    ------
    EpisodeError
        If there is no map, or an image cannot be drawn on.
    """
    if not maps:
        raise EpisodeError(episode.name, "no camera's patches are among the keys of this phase")
    geometries = {camera: episode.geometry(camera) for camera in maps}
    first = next(iter(maps.values()))
    keyframe, frame = int(first["keyframe"]), int(first["frame"])
    panel = Panel(geometries, look)
    images = {
        camera: decode_frame(
            episode.image_bytes(keyframe, camera), geometry, episode.name, f"{camera} at {keyframe}"
        )
        for camera, geometry in geometries.items()
    }
    phase = str(first.name).split("_")[0]
    detail = (
        f"{episode.name}, {phase}: rollout of {first.attrs['query']}, "
        f"{first.attrs['head_fusion']} over heads, residual {first.attrs['residual']:g}"
    )
    place = f"frame {frame}, keyframe {keyframe + 1}/{len(episode.frames)}"
    base = panel.base(episode.instruction, detail, images, place)
    layers = first.attrs["layers"]
    name = f"L{layers[0]:02d} to L{layers[-1]:02d}"
    panes = {}
    for camera, values in maps.items():
        shown = np.where(geometries[camera].coverage() > 0, values.to_numpy(), np.nan)
        total = float(np.nansum(values.to_numpy()))
        panes[camera] = Pane(
            values.to_numpy(), data_limits(shown), name, [f"{100 * total:.1f} % of all inputs"]
        )
    return image_file.write(out, panel.compose(base, panes).pixels)


def draw_words(
    episode: EpisodeMaps, camera: str, maps: xr.DataArray, out: Path, look: Look | None = None
) -> Path:
    """Draw a camera's image once for every word, with where the word looks.

    Parameters
    ----------
    maps
        (word, row, col) of one keyframe, as `attnstore.query.attention.word_maps` gives them; each word
        has its own scale, from 0 to its largest value on the image.
    out
        File; its ending is the format.

    Raises
    ------
    EpisodeError
        If the image cannot be drawn on.
    """
    look = look or Look()
    geometry = episode.geometry(camera)
    keyframe, frame = int(maps["keyframe"]), int(maps["frame"])
    image = decode_frame(
        episode.image_bytes(keyframe, camera), geometry, episode.name, f"{camera} at {keyframe}"
    )
    sampler = heatmap.sampler(geometry, look.interpolation)
    shown = geometry.coverage() > 0
    cells = []
    for word in maps["word"].to_numpy().astype(str):
        values = maps.sel(word=word).to_numpy()
        limits = data_limits(values[shown])
        drawn = overlay.blend(
            image, sampler.draw(values), limits, cmap=look.cmap, alpha=look.alpha, style=look.blend
        )
        cells.append(Cell(drawn, word, f"0 to {limits.vmax:.3g}"))
    detail = (
        f"{episode.name}, {camera}, frame {frame}: layer {int(maps['layer'])}, "
        f"head {maps['head'].item()}; each word has its own scale"
    )
    rows = in_rows(cells, 4)
    return image_file.write(out, sheet(episode.instruction, detail, rows, height=HEIGHT))
