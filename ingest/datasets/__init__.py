"""Readers of robot episodes: the ``Dataset`` protocol and one module family per format."""

from .base import OUTCOMES, CameraFrame, Dataset, EpisodeInfo, Frame
from .droid.dataset import DroidDataset

__all__ = ["OUTCOMES", "CameraFrame", "Dataset", "DroidDataset", "EpisodeInfo", "Frame"]
