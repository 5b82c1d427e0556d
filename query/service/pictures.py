"""What draws: implemented in `attnstore.render`, which this package must not import."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from attnstore.store.reader.episode import Episode

from .parameters import Active, OfEpisode, Tokens


class OverlayParameters(OfEpisode):
    """An overlay: what is drawn, and how it looks."""

    phase: str = Field(max_length=80, examples=["prefix"])
    keyframe: int = Field(examples=[0])
    layer: int = Field(examples=[1])
    head: int | Literal["active"] = Field("active", description="`active`: at this keyframe.")
    step: int | None = None
    reduce: Literal["max", "mean"] = "max"
    query: Tokens = None
    sink_corrected: bool = False
    active: Active = "image"
    cmap: str = Field("inferno", max_length=40, examples=["viridis"])
    alpha: float = Field(0.75, ge=0, le=1, description="Opacity of the strongest heat.")
    blend: Literal["spotlight", "proportional", "constant"] = "spotlight"
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    scale: str = Field(
        "frame",
        max_length=60,
        description="Ends of the colours: `frame`, `video` (all keyframes share one) or `LOW:HIGH`.",
    )
    width: int | None = Field(None, ge=16, le=2048, description="Pixels; the image's own if none.")
    quality: int = Field(85, ge=1, le=100)
    format: Literal["png", "jpg", "webp"] | None = Field(None, description="Instead of Accept.")


class VideoParameters(OfEpisode):
    """A video of one layer, a frame for every keyframe."""

    phase: str = Field(max_length=80, examples=["prefix"])
    layer: int = Field(examples=[1])
    head: int | Literal["active"] = Field("active", description="`active`: over the episode.")
    camera: str | None = Field(None, max_length=200, description="All if none.")
    step: int | None = None
    reduce: Literal["max", "mean"] = "max"
    query: str | None = Field(
        None, max_length=2000, description="A group of tokens by name; the phase's own if none."
    )
    sink_corrected: bool = False
    active: Active = "image"
    cmap: str = Field("inferno", max_length=40)
    alpha: float = Field(0.75, ge=0, le=1)
    blend: Literal["spotlight", "proportional", "constant"] = "spotlight"
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    scale: str = Field("video", max_length=60)
    width: int = Field(480, ge=64, le=1280, description="Of one image in the picture, pixels.")
    fps: float = Field(3.0, gt=0, le=30, description="Keyframes a second.")
    codec: Literal["vp9", "h264"] = "vp9"


class Pictures(Protocol):
    """Draws; called from several threads at once."""

    def overlay(
        self, episode: Episode, camera: str, parameters: OverlayParameters, format: str
    ) -> bytes:
        """Draw one camera at one keyframe, and encode it."""
        ...

    def video(self, episode: Episode, parameters: VideoParameters, path: Path) -> None:
        """Draw and encode a video; the file appears when it is complete."""
        ...
