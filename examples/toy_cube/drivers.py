"""What may drive the robot: the trained policy, the expert, and those to compare with."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from attnstore.ingest.policies.base import Observation
from attnstore.ingest.policies.registry import load_policy

from .architecture import ACTION_MEAN, ACTION_STD
from .expert import CHUNK, STRIDE
from .samples import CAMERAS
from .scene import HIGH, LOW, Float
from .world import Moment, RemoteWorld, decode


class Driver(Protocol):
    """Chooses chunks of commands."""

    cameras: tuple[str, ...]
    """Cameras that it looks at."""

    def commands(self, world: RemoteWorld, moment: Moment, instruction: str, seed: int) -> Float:
        """Return the next commands, (chunk, 4): x, y, z, closed."""
        ...


class PolicyDriver:
    """A checkpoint, through attnstore's own adapter.

    Parameters
    ----------
    blind
        Show it black images.
    """

    cameras: tuple[str, ...] = CAMERAS

    def __init__(self, checkpoint: str, *, blind: bool = False) -> None:
        self.policy = load_policy("pi0", checkpoint, dtype="float32")
        self._blind = blind

    def commands(self, world: RemoteWorld, moment: Moment, instruction: str, seed: int) -> Float:
        """Ask the policy."""
        images = {camera: decode(moment.images[camera]) for camera in self.cameras}
        if self._blind:
            images = {camera: np.zeros_like(image) for camera, image in images.items()}
        observation = Observation(images, instruction, moment.state, seed)
        return asked(self.policy.act(self.policy.prepare([observation]))[0].float().numpy(), moment)


def asked(actions: NDArray[np.float32], moment: Moment) -> Float:
    """Commands, (chunk, 4), that a policy's actions ask for: its action is the way from the hand.

    Parameters
    ----------
    actions
        Normalised, (chunk, action_dof).
    moment
        At which it acted.
    """
    way = actions * np.array(ACTION_STD) + np.array(ACTION_MEAN)
    start = np.concatenate([moment.joints[0], [0.0]])
    commands = np.asarray(way[:, :4] + start, np.float64)
    commands[:, 3] = commands[:, 3] > 0.5
    return commands


class ExpertDriver:
    """The script that made the training data; it sees the true state."""

    cameras: tuple[str, ...] = ()

    def commands(self, world: RemoteWorld, moment: Moment, instruction: str, seed: int) -> Float:
        """Ask the world's expert."""
        return np.asarray(world.expert())


class RandomDriver:
    """Goes to random places at the expert's pace, and opens or closes at each."""

    cameras: tuple[str, ...] = ()

    def commands(self, world: RemoteWorld, moment: Moment, instruction: str, seed: int) -> Float:
        """Head for a random place above or on the table."""
        random = np.random.default_rng(seed)
        hand, commands = moment.joints[0], []
        goal = np.array([*random.uniform(LOW, HIGH), random.uniform(0.015, 0.2)])
        closed = float(random.integers(2))
        for _ in range(CHUNK):
            way = goal - hand
            hand = hand + way * min(1.0, STRIDE / max(float(np.linalg.norm(way)), 1e-9))
            commands.append([*hand, closed])
        return np.array(commands)
