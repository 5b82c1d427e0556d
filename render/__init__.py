"""Pictures and videos of what a policy looks at, drawn from query results.

Needs neither the model nor torch. `render_images` and `render_videos` draw an episode in the
lab's folder layout, `attnstore.render.files.side_by_side` one of two runs; `draw` gives the heat of
every source pixel as numbers.
"""

from .files.episode_images import render_images
from .files.episode_videos import render_videos
from .picture.heatmap import draw
from .picture.look import Look
from .picture.scale import ColorScale

__all__ = ["ColorScale", "Look", "draw", "render_images", "render_videos"]
