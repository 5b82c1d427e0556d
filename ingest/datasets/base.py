"""What a dataset reader gives to the pipeline: the seam between datasets and policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, UsageError
from attnstore.store.image import LFS

if TYPE_CHECKING:
    from ..policies.base import Batch

OUTCOMES = ("success", "failure", "unknown")
VideoFrames = Literal["jpeg", "png"]
"""What is kept of the decoded frames of videos."""


@dataclass(frozen=True, slots=True)
class CameraFrame:
    """One camera's image at one frame, as read."""

    camera: str
    data: bytes
    """Encoded image, plain as `attnstore.store.image` says: the file's own bytes where it is plain."""
    media_type: str
    """``image/jpeg`` or ``image/png``."""
    rgb: NDArray[np.uint8]
    """What the policy sees, (height, width, 3): of a still, exactly the pixels of `data`."""


@dataclass(frozen=True, slots=True)
class PolicyCall:
    """What a policy was given and answered at a frame at which it drove."""

    instruction: str
    """The prompt of this call."""
    seed: int
    """Seed of the initial noise."""
    batch: Batch
    """The model's own inputs, of one observation: taken as they are, not made again."""
    actions: NDArray[np.float32]
    """The chunk that it gave, (horizon, action_dof), normalised units."""
    executed: int | None = None
    """Actions of it that were carried out, if that is known."""
    rows: int = 1
    """Observations in the batch that it was a row of."""
    seconds: float | None = None
    """How long the policy took."""
    threads: int | None = None
    """Threads that PyTorch computed with: on a CPU, another number of them rounds otherwise."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything recorded at one frame of an episode."""

    index: int
    """0-based frame number in the episode."""
    cameras: tuple[CameraFrame, ...]
    """In the order that was asked for: wrist first, then the side camera."""
    state: NDArray[np.float32]
    """Robot state, (state_dof,), in the dataset's units."""
    action: NDArray[np.float32]
    """Recorded action, (action_dof,), in the dataset's units."""
    timestamp: float | None = None
    """Seconds since the episode's first frame, if recorded."""
    call: PolicyCall | None = None
    """Of a recording of a policy that drove; else None."""


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """What is known of an episode before its frames are read."""

    name: str
    """The dataset's own name, unique in it; may contain ``/``: ``success/2025-12-10/2025-...``."""
    outcome: str
    """``success``, ``failure`` or ``unknown``."""
    instruction: str
    frames: int
    """Number of frames."""
    task: str | None = None
    date: str | None = None
    """Recording date, ``YYYY-MM-DD``."""
    rate: float | None = None
    """Frames per second, if recorded."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the dataset says of the episode; JSON values."""
    keyframes: tuple[int, ...] | None = None
    """Frames at which a policy that drove was called, in order; None: every `stride`-th frame is one."""


class Dataset(Protocol):
    """A readable collection of episodes.

    Implementations are cheap to construct, picklable (workers receive them), and hold no open
    files between calls. They are used from one thread at a time.
    """

    kind: str
    """Reader's name on the command line: ``droid``."""
    name: str
    """Name of this dataset, part of the run's identity."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names in the order in which every frame lists them."""
        ...

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the reader's own filters, sorted."""
        ...

    def file_of(self, name: str) -> str | None:
        """Return the file in which an episode lies beside others; None if it has files of its own."""
        ...

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it without decoding its images.

        Raises
        ------
        EpisodeError
            If the episode is broken; the message names the rule, the values and the repair.
        """
        ...

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the asked frames in the given order.

        Raises
        ------
        EpisodeError
            If an image cannot be decoded or a value is missing.
        """
        ...


def copy_again(path: Path) -> str:
    """Say how to repair a file that is damaged: a clone without Git LFS has pointers in its place."""
    try:
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                return "it is a pointer of Git LFS, and `git lfs pull` brings the file"
    except OSError:
        pass
    return "copy the file again"


def why_missing(root: Path, relative: str) -> str:
    """Say what is wrong where `relative` should be below `root`, and the repair.

    Where links cannot be kept (Git on Windows, some archives), a link to a folder becomes a small
    file that holds the place it led to.
    """
    for parent in reversed(Path(relative).parents[:-1]):
        place = root / parent
        if place.is_symlink() and not place.exists():
            return (
                f"{relative} is missing: {parent} leads to {str(place.readlink())!r}, and nothing is "
                "there; copy what it led to, or link it again"
            )
        if place.is_file():
            with place.open("rb") as file:
                held = file.read(200).decode(errors="replace").strip()
            return (
                f"{relative} is missing: {parent} is a file that holds {held!r:.100}, where a folder "
                "belongs; if it was a link, make it one again, or put the folder there"
            )
    return f"{relative} is missing; copy the file again"


def check_frames(name: str, length: int, indices: Sequence[int]) -> None:
    """Check that an episode of so many frames has the asked ones.

    Raises
    ------
    UsageError
        If it has not.
    """
    for index in indices:
        if not 0 <= index < length:
            raise UsageError(
                f"episode {name} has frames 0 to {length - 1}; frame {index} was asked"
            )


def check_finite(episode: str, state: NDArray[np.float32], columns: Sequence[str]) -> None:
    """Check that an episode's states, (step, state_dof) joined of these columns, are numbers.

    Raises
    ------
    EpisodeError
        If one is NaN or infinite.
    """
    bad = np.argwhere(~np.isfinite(state))
    if len(bad):
        step, column = bad[0].tolist()
        raise EpisodeError(
            episode,
            f"states are finite numbers: number {column} of {' and '.join(columns)} at step {step} is "
            f"{state[step, column]}; repair the dataset or leave the episode out",
        )
