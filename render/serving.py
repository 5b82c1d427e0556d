"""Pictures for the query service: it must not import this package, so it is handed this object."""

from __future__ import annotations

from pathlib import Path

from attnstore.query.service.parameters import parse_group
from attnstore.query.service.pictures import OverlayParameters, VideoParameters
from attnstore.store.errors import UsageError
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index

from .files import video
from .picture import heatmap, image_file, overlay
from .picture.drawing import Drawing
from .picture.layout import Box
from .picture.look import Look
from .picture.scale import ColorScale
from .picture.scene import Scene, decode_frame
from .picture.sheet import fit_image
from .picture.source import check_cameras, check_layers, check_query, check_step
from .picture.track import LayerMaps

# resolved: an editable install consists of links, and files outside the folder are not served
PAGE = Path(__file__).resolve().parent / "viewer"
"""Folder of the viewer page."""


class Painter:
    """Draws what `attnstore.query.service` is asked for; safe to use from several threads."""

    def overlay(
        self, episode: Episode, camera: str, parameters: OverlayParameters, format: str
    ) -> bytes:
        """Draw one camera at one keyframe, and encode it."""
        p = parameters
        keyframe = check_index(p.keyframe, len(episode.frames), "keyframe")
        geometry = episode.geometry(camera)
        head = p.head
        if head == "active":
            head = episode.active_head(
                p.phase, camera, layer=p.layer, step=p.step, keyframe=keyframe,
                query=_group(p.query), reduce=p.reduce, sink_corrected=p.sink_corrected,
                active=p.active,
            )  # fmt: skip
        scale = ColorScale.parse(p.scale)
        wanted = None if scale.scope == "video" else keyframe
        maps = episode.maps(
            p.phase, camera, layer=p.layer, head=int(head), step=p.step, reduce=p.reduce,
            keyframe=wanted, query=_group(p.query), sink_corrected=p.sink_corrected,
        )  # fmt: skip
        limits = scale.limits({camera: maps}, {camera: geometry})[camera]
        data = episode.image_bytes(keyframe, camera)
        what = f"{camera} at keyframe {keyframe}"
        image = decode_frame(data, geometry, episode.name, what)
        if p.width is not None:
            height = max(1, round(geometry.source[0] * p.width / geometry.source[1]))
            image = fit_image(image, Box(0, 0, p.width, height))
        size = (image.shape[0], image.shape[1])
        shown = maps[keyframe] if wanted is None else maps
        heat = heatmap.sampler(geometry, p.interpolation, size).draw(shown)
        drawn = overlay.blend(image, heat, limits, cmap=p.cmap, alpha=p.alpha, style=p.blend)
        return image_file.encode(drawn, format, p.quality)

    def video(self, episode: Episode, parameters: VideoParameters, path: Path) -> None:
        """Draw and encode a video; the file appears when it is complete."""
        p = parameters
        cameras = check_cameras(episode, None if p.camera is None else [p.camera])
        chosen = check_layers(episode, [p.phase], [p.layer])
        check_query(episode, chosen, p.query, named=True)
        step = check_step(episode, p.phase, p.step)
        drawing = Drawing(p.phase, p.reduce, step, p.sink_corrected, p.query)
        look = Look(p.cmap, p.alpha, p.blend, p.interpolation, p.width)
        scale = ColorScale.parse(p.scale)
        scene = Scene(episode, drawing, cameras, look=look, scale=scale, active=p.active)
        maps = LayerMaps.load(
            episode, p.phase, p.layer, cameras,
            step=p.step, reduce=p.reduce, sink_corrected=p.sink_corrected, query=p.query,
            active=p.active,
        )  # fmt: skip
        if p.head == "active":
            track = maps.most_active(at_each=False)
        else:
            track = maps.track(check_index(p.head, episode.heads(p.phase), f"{p.phase} head"))
        limits = track.limits(scale, scene.geometries)
        frames = (scene.picture(track, k, limits[k]).pixels for k in range(len(scene.frames)))
        video.encode(path, frames, codec=p.codec, fps=p.fps, threads=1)


def _group(text: str | None) -> str | int | list[int] | None:
    group = parse_group(text, "query")
    if isinstance(group, slice):
        raise UsageError(f"query is a group or indices; got {text!r}")
    return group  # type: ignore[return-value]  # parse_group's lists are of int
