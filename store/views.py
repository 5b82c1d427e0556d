"""Names of what a camera showed at another moment than the keyframe itself.

A policy with a window of observations sees a camera several times. The keyframe's own image keeps
the camera's name; ``hand_camera@-1`` is what the same camera showed one frame earlier. Everywhere
else such a *view* is a camera of its own: with image, geometry, span and maps.
"""

from __future__ import annotations

MARK = "@"
GOAL = "goal"


def earlier(camera: str, frames: int) -> str:
    """Name of a camera's view some frames before the keyframe; 0 is the camera itself.

    Examples
    --------
    >>> earlier("hand_camera", 1), earlier("hand_camera", 0)
    ('hand_camera@-1', 'hand_camera')
    """
    return f"{camera}{MARK}-{frames}" if frames else camera


def goal(camera: str) -> str:
    """Name of a camera's view of the goal.

    Examples
    --------
    >>> goal("hand_camera")
    'hand_camera@goal'
    """
    return f"{camera}{MARK}{GOAL}"


def is_current(view: str) -> bool:
    """Whether a view is of the keyframe itself.

    Examples
    --------
    >>> is_current("hand_camera"), is_current("hand_camera@-1")
    (True, False)
    """
    return MARK not in view
