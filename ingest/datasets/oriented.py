"""A dataset whose cameras are turned or flipped: any reader's, before a policy or the store sees a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from attnstore.store.errors import UsageError
from attnstore.store.format.orientation import Orientation
from attnstore.store.image import JPEG, PNG, decode, encode_png

from .base import CameraFrame, Dataset, EpisodeInfo, Frame
from .video import encode


class OrientedDataset:
    """Another dataset, with some of its cameras' images turned.

    Parameters
    ----------
    dataset
        What reads the frames.
    orientations
        By camera.

    Raises
    ------
    UsageError
        If the dataset has no such camera.
    """

    def __init__(self, dataset: Dataset, orientations: Mapping[str, Orientation]) -> None:
        for camera in orientations:
            if camera not in dataset.cameras:
                raise UsageError(
                    f"{dataset.name}: no camera {camera!r} to turn or flip; it has "
                    f"{', '.join(dataset.cameras)}"
                )
        self.dataset, self.orientations = dataset, dict(orientations)
        self.kind, self.name = dataset.kind, dataset.name

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those of the dataset."""
        return self.dataset.cameras

    def episode_names(self) -> Sequence[str]:
        """See `Dataset.episode_names`."""
        return self.dataset.episode_names()

    def file_of(self, name: str) -> str | None:
        """See `Dataset.file_of`."""
        return self.dataset.file_of(name)

    def info(self, name: str) -> EpisodeInfo:
        """See `Dataset.info`."""
        return self.dataset.info(name)

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Dataset.frames`; images are turned."""
        for frame in self.dataset.frames(name, indices):
            yield replace(
                frame,
                cameras=tuple(
                    c if (way := self.orientations.get(c.camera)) is None else _turned(c, way)
                    for c in frame.cameras
                ),
            )


def _turned(frame: CameraFrame, orientation: Orientation) -> CameraFrame:
    """Turn an image and what is kept of it.

    A still's kept bytes are exactly the policy's pixels, and are so again, as PNG. Of a video's frame a
    JPEG is kept again as JPEG, of the turned frame and not of the JPEG.
    """
    rgb = orientation.apply(frame.rgb)
    if frame.media_type == JPEG and not np.array_equal(decode(frame.data), frame.rgb):
        return encode(frame.camera, rgb, "jpeg")
    return CameraFrame(frame.camera, encode_png(rgb), PNG, rgb)
