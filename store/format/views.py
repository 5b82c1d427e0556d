"""Names of cameras, and of what a camera showed at another moment than the keyframe itself.

A camera's name is part of paths, addresses, file names and groups of tokens: it consists of letters
and digits of any script, ``_``, ``-`` and ``.``, begins with a letter or digit and ends in no dot.

A policy with a window of observations sees a camera several times. The keyframe's own image keeps
the camera's name; ``hand_camera@-1`` is what the same camera showed one frame earlier. Everywhere
else such a *view* is a camera of its own: with image, geometry, span and maps.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from ..errors import UsageError

MARK = "@"
GOAL = "goal"
LONGEST = 100
"""Bytes of a camera's name in UTF-8: what is named after it has to be a file's name."""
_MOMENT = re.compile(rf"-[1-9][0-9]*|{GOAL}")


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


def check_cameras(names: Iterable[str]) -> None:
    """Check the names of a run's or an episode's cameras, and of their views.

    Raises
    ------
    UsageError
        If one breaks the rule, is named twice, or two are the same where a file system ignores case.
    """
    known: dict[str, str] = {}
    for name in names:
        camera, mark, moment = name.partition(MARK)
        if named(camera) != camera or (mark and not _MOMENT.fullmatch(moment)):
            raise UsageError(
                f"a camera's name has letters, digits, '_', '-' and '.', begins with a letter or "
                f"digit, ends in no dot and has at most {LONGEST} bytes; got {name[:200]!r}: rename "
                f"it, such as {named(camera)!r}"
            )
        if name in known.values():
            raise UsageError(f"a camera is named twice: {name}")
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise UsageError(
                f"cameras {other!r} and {name!r} differ in case only, which is one file on some "
                "systems: rename one"
            )


def named(text: str) -> str:
    """Return the name of a camera that is nearest to a text.

    Examples
    --------
    >>> named("hand_camera"), named("cam/left"), named("../front cam?"), named("手.rgb"), named("")
    ('hand_camera', 'cam_left', 'front_cam', '手.rgb', 'camera')
    """
    composed = unicodedata.normalize("NFC", text)
    kept = "".join(
        c if unicodedata.category(c)[0] in "LMN" or c in "_-." else "_" for c in composed
    )
    start = next((i for i, c in enumerate(kept) if unicodedata.category(c)[0] in "LN"), len(kept))
    # a character that is cut in half at the end is dropped
    short = kept[start:].encode()[:LONGEST].decode(errors="ignore")
    return short.rstrip("." if kept == composed else "._") or "camera"
