"""The frames of keyframes as a policy sees them: with earlier views and the goal, if it looks so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from attnstore.store.errors import EpisodeError
from attnstore.store.format.views import earlier, goal

from .datasets.base import CameraFrame, Dataset, EpisodeInfo, Frame
from .policies.base import Policy, WindowPolicy
from .reading import read_frames


def keyframe_views(
    dataset: Dataset, info: EpisodeInfo, indices: Sequence[int], policy: Policy
) -> Iterator[Frame]:
    """Yield the keyframes in order, each with every view that the policy takes in.

    A window reaches back over *frames*, not keyframes. Before the episode's first frame there is
    nothing: the views are missing there.

    Raises
    ------
    EpisodeError
        If an image cannot be decoded, a value is missing, or the reader gives too few frames.
    """
    # What a policy that drove saw is in its call: earlier views too.
    if (
        info.keyframes is not None
        or not isinstance(policy, WindowPolicy)
        or (policy.window == 1 and not policy.sees_goal)
    ):
        yield from read_frames(dataset, info.name, indices)
        return
    reach = range(policy.window)
    needed = sorted({i - back for i in indices for back in reach if i >= back})
    target = _only(dataset, info, info.frames - 1) if policy.sees_goal else None
    wanted = set(indices)
    held: dict[int, Frame] = {}
    for frame in read_frames(dataset, info.name, needed):
        held[frame.index] = frame
        if frame.index in wanted:
            views = [
                view
                for back in reach
                if (past := held.get(frame.index - back)) is not None
                for view in _renamed(past.cameras, back)
            ]
            if target is not None:
                views += [replace(c, camera=goal(c.camera)) for c in target.cameras]
            yield replace(frame, cameras=tuple(views))
        for index in [i for i in held if i <= frame.index - policy.window + 1]:
            del held[index]


def first_full_window(info: EpisodeInfo, policy: Policy) -> int:
    """Return the first frame at which the policy's window is full; the last if the episode ends."""
    window = policy.window if isinstance(policy, WindowPolicy) else 1
    return min(window, info.frames) - 1


def _renamed(cameras: Iterable[CameraFrame], back: int) -> list[CameraFrame]:
    return [replace(c, camera=earlier(c.camera, back)) for c in cameras]


def _only(dataset: Dataset, info: EpisodeInfo, index: int) -> Frame:
    for frame in read_frames(dataset, info.name, [index]):
        return frame
    raise EpisodeError(info.name, f"frame {index}, the goal, was not given by the reader")
