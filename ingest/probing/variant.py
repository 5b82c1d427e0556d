"""One intervention at one keyframe, and what makes them: the seam of `attnstore probe`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.episode import EpisodeSpec

from ..policies.base import Observation
from ..policies.blocking import Blocked
from .fills import Fill, filled

if TYPE_CHECKING:
    from .keyframe import StoredKeyframe

Mask = NDArray[np.bool_]
PROBE_SEMANTICS = 2
"""Raised when what a probe does, or a number of it, changes its meaning."""
BASE = "base"


@dataclass(frozen=True, slots=True)
class Variant:
    """What the policy is run on instead of the base, and the columns that say so."""

    name: str
    """Column ``variant``: unique in its part and keyframe."""
    observation: Observation
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Of its row in `table`, without keys and metrics."""
    masks: Mapping[str, Mask] = field(default_factory=dict)
    """Replaced pixels per camera."""
    blocked: tuple[Blocked, ...] = ()
    table: str = "interventions"
    keep_masks: bool = True
    """Whether the masks are stored: those of a curve's points follow from the map."""
    rows: tuple[Mapping[str, Any], ...] = ({},)
    """Its rows, beside `columns`: where curves meet, one run of the policy is a point of each."""
    unchanged: bool = False
    """It is the base itself: the policy need not run."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one part asks: frozen options that make the variants of a keyframe.

    Its digest names the part, so equal options resume and others make another part.
    """

    kind: ClassVar[str]
    """Column ``probe``."""
    shifts: ClassVar[bool] = False
    """Whether the maps of base and variant are compared."""
    regions: ClassVar[bool] = False
    """Whether every map's attention on the variants' masks is measured."""

    every: int = field(default=1, kw_only=True)
    """Every so many-th keyframe is probed."""

    @property
    def needs_objects(self) -> bool:
        """Whether object masks are needed."""
        return False

    def check(self, spec: EpisodeSpec) -> None:
        """Check that an episode has what is asked for.

        Raises
        ------
        SelectionError
            If it has not; the message lists what there is.
        EpisodeError
            If another episode of the same run may have it.
        """
        raise NotImplementedError

    def forwards(self, spec: EpisodeSpec) -> int:
        """Count the variants of a keyframe, for the forecast; the base is not counted."""
        raise NotImplementedError

    def variants(self, keyframe: StoredKeyframe) -> Iterator[Variant]:
        """Yield the variants of a keyframe."""
        raise NotImplementedError

    @property
    def part(self) -> str:
        """Name of the part: ``probe-`` and a digest of the options."""
        return f"probe-{self.digest()[:10]}"

    def digest(self) -> str:
        """SHA-256 of the options and of what they mean."""
        text = json.dumps([PROBE_SEMANTICS, self.kind, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def masked(
    name: str,
    keyframe: StoredKeyframe,
    masks: Mapping[str, Mask],
    fill: Fill,
    columns: Mapping[str, Any],
    *,
    repeat: int = 0,
    table: str = "interventions",
) -> Variant:
    """Make the variant whose pixels under the masks are replaced.

    Parameters
    ----------
    masks
        Per camera, (height, width) of its image.
    columns
        Further columns of its row.
    """
    images = dict(keyframe.observation.images)
    pixels = seen = 0
    change = 0.0
    for camera, mask in masks.items():
        before = images[camera]
        rng = keyframe.random("fill", camera, repeat)
        images[camera] = filled(before, mask, fill, keyframe.seen(camera), rng)
        difference = np.abs(images[camera][mask].astype(np.float64) - before[mask])
        pixels += int(mask.sum())
        seen += int(keyframe.seen(camera).sum())
        change += float(difference.mean(-1).sum())
    observation = keyframe.with_images(images)
    found = {
        "cameras": list(masks),
        "fill": fill,
        "pixels": pixels,
        "area": pixels / seen if seen else None,
        "pixel_change": change / pixels if pixels else None,
        "repeat": repeat,
    }
    if table != "interventions":
        found = {name: found[name] for name in ("cameras", "fill", "repeat")}
    return Variant(
        name,
        observation,
        {**found, **columns},
        masks,
        table=table,
        keep_masks=table == "interventions",
    )
