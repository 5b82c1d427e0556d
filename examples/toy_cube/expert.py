"""The scripted expert: from any state, the next commands that put the target cube into its bowl.

It sees the world's true state and is memoryless, so that any state can be labelled with what the
expert would do from there, also states that it would never reach by itself (DAgger, Ross et al.
2011). Its chunks assume that the robot does as it is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Float
from .simulator import Simulator

CHUNK = 8
"""Commands in a chunk, all carried out before the policy is asked again."""
STRIDE = 0.03
"""Longest way of one command, metres."""
HOVER = 0.10
GRASP = 0.018
CARRY = 0.13
RELEASE = 0.07
HELD = 0.46
"""Gripper position with a cube between the fingers."""
_CLOSE_BY = 0.008


@dataclass(frozen=True, slots=True)
class State:
    """What the expert knows."""

    hand: Float
    closed: float
    cube: Float
    """Centre of the target cube, (3,)."""
    bowl: Float
    """Centre of the target bowl, (2,)."""
    held: bool
    done: bool
    """The target cube is in the target bowl."""


def observe(simulator: Simulator) -> State:
    """Read the state off the simulator."""
    return State(
        simulator.hand,
        simulator.closed,
        simulator.cube(0),
        simulator.layout.bowl_xy[0],
        simulator.holds,
        simulator.in_bowl(0, 0) and not simulator.holds,
    )


def command(state: State) -> Float:
    """Return the expert's next command, (x, y, z, closed)."""
    hand = state.hand
    if state.done:
        return np.array([*_towards(hand, np.array([*hand[:2], 0.2])), 0.0])
    if state.held:
        away = np.hypot(*(state.bowl - hand[:2]))
        if away < 0.012 and hand[2] < RELEASE + 0.012:
            return np.array([*hand, 0.0])
        if away < 0.012:
            return np.array([*_towards(hand, np.array([*state.bowl, RELEASE])), 1.0])
        if hand[2] < CARRY - 0.03:
            return np.array([*_towards(hand, np.array([*hand[:2], CARRY])), 1.0])
        return np.array([*_towards(hand, np.array([*state.bowl, CARRY])), 1.0])
    away = np.hypot(*(state.cube[:2] - hand[:2]))
    grasp = max(GRASP, float(state.cube[2]) - 0.004)
    if away < _CLOSE_BY and hand[2] < grasp + _CLOSE_BY:
        return np.array([*hand, 1.0])
    if away < _CLOSE_BY and state.closed < 0.2:
        return np.array([*_towards(hand, np.array([*state.cube[:2], grasp])), 0.0])
    if away > 0.03 and hand[2] < HOVER - 0.03:
        return np.array([*_towards(hand, np.array([*hand[:2], HOVER])), 0.0])
    hover = HOVER if hand[2] > 0.055 or away > 0.02 else float(hand[2])
    return np.array([*_towards(hand, np.array([*state.cube[:2], hover])), 0.0])


def chunk(state: State, length: int = CHUNK) -> Float:
    """Return the next commands, (length, 4), as if the robot obeyed at once.

    The fingers take one command to close or to open.
    """
    commands = []
    for _ in range(length):
        now = command(state)
        commands.append(now)
        state = _obey(state, now)
    return np.array(commands)


def _towards(hand: Float, goal: Float) -> Float:
    way = goal - hand
    distance = float(np.linalg.norm(way))
    return hand + way * min(1.0, STRIDE / max(distance, 1e-9))


def _obey(state: State, now: Float) -> State:
    hand, closing = now[:3], bool(now[3] > 0.5)
    offset = np.abs(state.cube - state.hand)
    within = bool((offset < (0.02, 0.02, 0.02)).all())
    held = closing and (state.held or within)
    cube, done = state.cube, state.done
    if held:
        cube = state.cube + (hand - state.hand)
    elif state.held:  # let go
        above = np.hypot(*(state.cube[:2] - state.bowl)) < 0.04
        done = bool(above)
        cube = np.array([*state.cube[:2], 0.03 if above else 0.022])
    closed = HELD if held else float(closing)
    return State(hand, closed, cube, state.bowl, held, done)
