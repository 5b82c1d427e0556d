"""What fixes the numbers of an objects part, besides the episode and the masks themselves."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from attnstore.store.errors import UsageError

from .gripper import open_gripper_masks
from .masks import HAND_CAMERA, MaskSource, detector_files, open_detector_masks
from .overlap import DEFAULT_THRESHOLD, OBJECT_SEMANTICS
from .recording import CALIBRATION

Source = Literal["detector", "gripper"]
SOURCES: tuple[Source, ...] = get_args(Source)
Tier = Literal["maps", "full"]
TIERS: tuple[Tier, ...] = get_args(Tier)


def mask_files(source: Source, directory: Path, camera: str) -> tuple[Path, ...]:
    """Files of an episode that say that it has masks of a source; one of them is enough."""
    if source == "detector":
        return detector_files(directory, camera)
    return (directory / CALIBRATION,)


@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """What fixes the numbers of a part, besides the episode and the masks themselves."""

    source: Source
    camera: str = HAND_CAMERA
    threshold: float = DEFAULT_THRESHOLD
    """Share of a map's largest value from which a patch is bright, for iou."""
    within: int = 0
    """A keyframe without a mask takes that of the nearest frame at most this many away."""
    tier: Tier = "maps"
    """Read the overview maps (fast, within 0.05 %), or the full attention at the run's precision."""
    tool_offset: float = 0.0
    """Metres from the recorded pose to the fingertips; see `attnstore.query.objects.gripper`."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"a source is one of {', '.join(SOURCES)}; got {self.source!r}")
        if self.tier not in TIERS:
            raise UsageError(f"a tier is one of {', '.join(TIERS)}; got {self.tier!r}")
        if not 0 < self.threshold <= 1:
            raise UsageError(f"the threshold is more than 0 and at most 1; got {self.threshold}")
        if not math.isfinite(self.tool_offset):
            raise UsageError(f"the tool offset is finite, in metres; got {self.tool_offset}")
        if self.within < 0:
            raise UsageError(f"within is a number of frames, at least 0; got {self.within}")

    @property
    def part(self) -> str:
        """Name of the part: ``objects-`` and a digest of these options."""
        text = json.dumps([OBJECT_SEMANTICS, asdict(self)], sort_keys=True)
        return f"objects-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def open(self, episode: str, directory: Path) -> MaskSource:
        """Open an episode's masks.

        Raises
        ------
        EpisodeError
            If it has none of this source and camera.
        """
        if self.source == "detector":
            return open_detector_masks(episode, directory, self.camera)
        return open_gripper_masks(episode, directory, self.camera, tool_offset=self.tool_offset)
