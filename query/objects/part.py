"""Object overlap of an episode, computed from a committed episode and committed beside it.

One part ``objects-<digest>`` per kind of mask, camera and parameters holds two tables:
``object_stats`` and, so that reports need the dataset no more, ``object_masks``. It remembers a
digest of everything that it was computed from: with the same inputs it is not computed again, with
others the next revision is committed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from attnstore.store.boundary import episode_errors
from attnstore.store.commits import Attempt, Commit, StorePaths, latest_commit
from attnstore.store.commits.run import load_run
from attnstore.store.errors import ConflictError, EpisodeError, NotFoundError, SelectionError
from attnstore.store.format.orientation import orientations_of
from attnstore.store.format.weighting import Weighting
from attnstore.store.reader.episode import Episode
from attnstore.store.tables.inventory import PART_TABLES
from attnstore.store.tables.parquet import write_table

from .masks import MaskSource, OrientedMasks
from .options import ObjectOptions
from .overlap import OBJECT_SEMANTICS
from .rows import MASKS, STATS, Scene, mask_rows, phase_rows


@dataclass(frozen=True, slots=True)
class Added:
    """What `add_objects` did."""

    commit: Commit
    computed: bool
    """False if the part was there with the same inputs."""

    @property
    def rows(self) -> int:
        """Rows of ``object_stats``."""
        return int(self.commit.summary["rows"])


def add_objects(
    paths: StorePaths,
    episode: Episode,
    directory: Path,
    options: ObjectOptions,
    *,
    phases: Sequence[str] = (),
    values: bool = True,
    redo: bool = False,
) -> Added:
    """Compute and commit the object overlap of one episode, unless it is there.

    Parameters
    ----------
    paths
        The store that `episode` is in.
    directory
        The episode's directory in the dataset; see `find_episode`.
    phases
        Phases to compute; by default all that attend to the camera. Those that the part has
        already are kept.
    values
        Of value-weighted maps, too, if the episode has value norms and its whole attention is here.
    redo
        Compute although the inputs are the same.

    Raises
    ------
    EpisodeError
        If the masks are missing or broken, or none is at a keyframe.
    SelectionError
        If the episode has no such camera or phase.
    ConflictError
        If another process committed the same part meanwhile.
    """
    camera = options.camera
    episode.geometry(camera)
    asked = tuple(phases) or tuple(
        p for p in episode.phases if camera in episode.phase(p, camera).cameras
    )
    for phase in asked:
        if camera not in episode.phase(phase, camera).cameras:
            raise SelectionError(f"{episode.name}: {phase} does not attend to {camera}")
    with episode_errors(episode.name, "reading its masks"):
        source = options.open(episode.name, directory)
        turned = orientations_of(load_run(paths, episode.run)[0].options).get(camera)
        if turned is not None:
            source = OrientedMasks(source, turned)
        inputs = _digest(episode, source)
    before = latest_commit(paths, episode.run, episode.id, options.part)
    done = () if before is None else tuple(before.summary.get("phases", ()))
    both = values and all(_carries(episode, phase, camera) for phase in asked)
    weightings: tuple[Weighting, ...] = ("raw", "value") if both else ("raw",)
    had = () if before is None else tuple(before.summary.get("weightings", ()))
    same = (
        before is not None
        and before.summary.get("inputs") == inputs
        and set(asked) <= set(done)
        and set(weightings) <= set(had)
    )
    if before is not None and same and not redo:
        return Added(before, False)
    wanted = tuple(p for p in episode.phases if p in {*asked, *done})
    _check_numbering(episode, source)
    pairs = match_frames(episode.frames.tolist(), source.frames, options.within)
    if not pairs:
        raise EpisodeError(episode.name, _no_match(episode, source, options.within))
    with episode_errors(episode.name, "reading its masks"):
        scenes = [Scene.read(episode, source, camera, k, frame) for k, frame in pairs.items()]
    stats = PART_TABLES[STATS].schema.empty_table()
    blocks = [
        b for phase in wanted for b in phase_rows(episode, options, phase, scenes, weightings)
    ]
    if blocks:
        stats = pa.concat_tables(blocks)
    summary = {
        "name": episode.name,
        "outcome": episode.outcome,
        **asdict(options),
        "phases": list(wanted),
        "weightings": list(weightings),
        "keyframes": len(scenes),
        "objects": sorted({m.category for s in scenes for m in s.masks}),
        "rows": stats.num_rows,
        "inputs": inputs,
    }
    attempt = Attempt(paths, episode.run, episode.id, options.part)
    try:
        write_table(attempt.path / f"{STATS}.parquet", stats)
        write_table(attempt.path / f"{MASKS}.parquet", mask_rows(episode, options, scenes))
    except BaseException:
        attempt.discard()
        raise
    try:
        # Not within the block above: an interrupt may arrive when the commit is visible already.
        return Added(attempt.publish(summary, after=before.revision if before else 0), True)
    except ConflictError:
        attempt.discard()
        raise


def find_dataset(root: Path) -> Path:
    """Return a dataset's directory, resolved.

    Raises
    ------
    NotFoundError
        If it is not there.
    """
    base = root.expanduser().resolve()
    if not base.is_dir():
        raise NotFoundError(f"{root}: no such directory; --masks names a dataset")
    return base


def find_episode(root: Path, name: str) -> Path:
    """Return an episode's directory in a dataset.

    Parameters
    ----------
    root
        The dataset, or an outcome, date or episode directory of it; resolved.
    name
        The dataset's own name of the episode: ``success/2025-12-10/2025-12-10_09-00-39``.

    Raises
    ------
    EpisodeError
        If it is not at or below `root`.
    """
    pure = PurePosixPath(name)
    if not pure.is_absolute() and ".." not in pure.parts:
        # The name starts above the root if that is an outcome, a date or the episode itself.
        for above in (root, *list(root.parents)[: len(pure.parts)]):
            directory = above / pure
            if directory.is_dir() and directory.is_relative_to(root):
                return directory
    raise EpisodeError(name, f"it is not in the dataset {root.name}")


def match_frames(keyframes: Sequence[int], frames: Sequence[int], within: int) -> dict[int, int]:
    """Find the mask of every keyframe: of its own frame, else the nearest one, the earlier of two.

    Parameters
    ----------
    keyframes
        Frame of every keyframe.
    frames
        Frames with masks, ascending.

    Returns
    -------
    Ordinal of the keyframe to frame of the mask; keyframes without one are left out.

    Examples
    --------
    >>> match_frames([0, 8, 16, 24], [0, 25, 50], 0), match_frames([0, 8, 16, 24], [0, 25, 50], 2)
    ({0: 0}, {0: 0, 3: 25})
    """
    known = np.asarray(frames, np.int64)
    found: dict[int, int] = {}
    for ordinal, frame in enumerate(keyframes):
        distance = np.abs(known - frame)
        if len(known) and distance.min() <= within:
            found[ordinal] = int(known[distance.argmin()])
    return found


def _carries(episode: Episode, phase: str, camera: str) -> bool:
    """Whether value-weighted maps can be made of what is here."""
    if not episode.phase(phase, camera).values:
        return False
    return episode.explain(phase, camera=camera, weighting="value").missing_bytes == 0


def _check_numbering(episode: Episode, source: MaskSource) -> None:
    """Check that frames are not numbered from 1: each mask would count for the frame after its own."""
    total = episode.spec.total_frames
    if total is not None and (min(source.frames), max(source.frames)) == (1, total):
        raise EpisodeError(
            episode.name,
            f"frames are numbered from 0: the masks are of frames 1 to {total}, and "
            f"the episode has 0 to {total - 1}; they seem to be numbered from 1 (ffmpeg does so unless "
            "told -start_number 0): subtract 1",
        )


def _digest(episode: Episode, source: MaskSource) -> str:
    # The attempt, and not the revision: an episode may be removed by hand and ingested again.
    text = json.dumps([OBJECT_SEMANTICS, episode.part.commit.attempt, source.digest()])
    return hashlib.sha256(text.encode()).hexdigest()


def _no_match(episode: Episode, source: MaskSource, within: int) -> str:
    def shown(frames: Sequence[int]) -> str:
        return ", ".join(map(str, frames[:4])) + (", ..." if len(frames) > 4 else "")

    nearest = min(abs(int(k) - f) for k in episode.frames for f in source.frames)
    return (
        f"no keyframe has masks: they are of frames {shown(source.frames)}, the keyframes are "
        f"{shown(episode.frames.tolist())}; the nearest are {nearest} frames apart (within is "
        f"{within})"
    )
