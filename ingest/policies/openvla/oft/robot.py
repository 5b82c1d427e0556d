"""The robot that an OpenVLA-OFT policy drives: sizes of its actions and state, and how they are scaled.

OpenVLA-OFT keeps them as constants of a module, which picks a platform by words of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ...base import ObservationError, PolicyError
from ..actions import QUANTILES

PLATFORMS: Mapping[str, tuple[int, int]] = {
    "libero": (7, 8), "aloha": (14, 14), "bridge": (7, 7),
}  # fmt: skip
"""Numbers of an action and of a state, of the platforms that OpenVLA-OFT's constants know."""
BOUNDS: Mapping[str, tuple[str, str]] = {"bounds": ("min", "max"), "bounds_q99": QUANTILES}
"""Bounds in the statistics, by the name of the normalisation."""
_NEARLY_NOTHING = 1e-8
"""What OpenVLA-OFT adds to a range, so that none is zero."""


@dataclass(frozen=True, slots=True)
class Robot:
    """Sizes, as OpenVLA-OFT's constants have them."""

    chunk: int
    """Actions that are predicted at once."""
    action_dof: int
    state_dof: int
    bounds: tuple[str, str]
    """Names of the statistics that are -1 and 1."""


def pick_platform(asked: str | None, action_dof: int | None, state_dof: int | None) -> str:
    """Say which of OpenVLA-OFT's platforms a checkpoint is of.

    Parameters
    ----------
    asked
        By the user.
    action_dof, state_dof
        As the checkpoint's weights have them; None where it has no such part.

    Raises
    ------
    UsageError
        If it is not among them, or the weights fit none or several and none is named.

    Examples
    --------
    >>> pick_platform(None, 7, 8), pick_platform(None, 14, None), pick_platform("libero", 3, 3)
    ('libero', 'aloha', 'libero')
    """
    if asked is not None:
        if asked not in PLATFORMS:
            raise UsageError(f"platform is one of {', '.join(PLATFORMS)}; got {asked!r}")
        return asked
    fit = [
        name
        for name, (actions, state) in PLATFORMS.items()
        if action_dof in (None, actions) and state_dof in (None, state)
    ]
    if len(fit) == 1:
        return fit[0]
    has = f"actions of {action_dof or 'unknown'} and a state of {state_dof or 'unknown'} numbers"
    raise UsageError(
        f"the checkpoint has {has}, as {' or '.join(fit) or 'no platform'} of OpenVLA-OFT's constants: "
        f"say which it was trained with: --policy-option platform=NAME, one of {', '.join(PLATFORMS)}"
    )


def check_state(statistics: Mapping[str, Any], key: str, robot: Robot) -> None:
    """Check that the statistics scale a state.

    Raises
    ------
    PolicyError
        If not, or a state of another length.
    """
    own = statistics[key].get("proprio", {})
    for name in robot.bounds:
        found = own.get(name)
        if not isinstance(found, Sequence) or len(found) != robot.state_dof:
            has = "none" if not isinstance(found, Sequence) else str(len(found))
            raise PolicyError(
                f"statistics of {key}: proprio needs {name} of {robot.state_dof} numbers, has {has}"
            )


def scaled_state(
    state: NDArray[np.floating[Any]], statistics: Mapping[str, Any], key: str, robot: Robot
) -> NDArray[np.float32]:
    """Scale a robot state to -1 to 1, clipped, as OpenVLA-OFT's evaluation does.

    Parameters
    ----------
    state
        (state_dof,), in the units of the training data.

    Raises
    ------
    ObservationError
        If it has another length.
    """
    if len(state) != robot.state_dof:
        raise ObservationError(
            f"the robot state has {len(state)} numbers, the policy was trained with {robot.state_dof}"
        )
    own = statistics[key]["proprio"]
    low, high = (np.asarray(own[name], np.float64) for name in robot.bounds)
    scaled = 2 * (state - low) / (high - low + _NEARLY_NOTHING) - 1
    shown = np.where(own.get("mask", np.ones(len(low), bool)), scaled, state)
    return np.clip(shown, -1, 1).astype(np.float32)
