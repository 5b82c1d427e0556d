"""Pictures and videos of what a policy looks at, drawn from query results.

Needs neither the model nor torch. `render_images` and `render_videos` draw an episode in the
lab's folder layout, `attnstore.render.side_by_side` one of two runs; `draw` gives the heat of
every source pixel as numbers.
"""

from .heatmap import draw
from .images import render_images
from .look import Look
from .scale import ColorScale
from .videos import render_videos

__all__ = ["ColorScale", "Look", "draw", "render_images", "render_videos"]
