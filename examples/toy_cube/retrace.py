"""A recorded drive gone through again in the simulator, for what the policy was not shown.

A recording has what the policy saw and did, and how it ended. The world is deterministic: the recorded actions,
carried out again, lead through the same states, of which pictures of every camera at every frame, masks and the
simulator's truth can be taken. What the recording has of a state is held to what is seen again, bit for bit.
"""

from __future__ import annotations

import numpy as np

from attnstore.ingest.datasets.base import CameraFrame, Frame, VideoFrames
from attnstore.ingest.datasets.video import encode
from attnstore.ingest.recording.call import QUALITY
from attnstore.ingest.recording.dataset import RecordingDataset

from .conditions import WORLDS
from .drivers import asked
from .rollout import FIRST, Rollout
from .scene import CAMERAS, Float, sample_layout
from .world import Moment, RemoteWorld, decode


class RetraceError(RuntimeError):
    """What is seen again is not what was recorded."""


def retrace(world: RemoteWorld, recording: RecordingDataset, name: str) -> Rollout:
    """Carry out the actions of a recorded episode, and look at every frame with every camera.

    Parameters
    ----------
    world
        Of the conditions under which it was recorded.
    recording, name
        What `rollout.roll` recorded; a call is a chunk.

    Raises
    ------
    RetraceError
        If a call's state or one of its pictures is another than recorded, calls are missing, or it ends
        otherwise: another checkout, version of MuJoCo or renderer, or another world.
    """
    info = recording.info(name)
    place = str(info.attributes["world"])
    seed = int(str(info.attributes["seed"]))
    layout = sample_layout(np.random.default_rng(FIRST + seed), WORLDS[place])
    done = Rollout(
        seed, layout, place, checkpoint=str(recording.policy_of(name)["checkpoint_digest"])
    )
    world.reset(layout)
    for frame in recording.frames(name, info.keyframes or ()):
        if frame.call is None or frame.call.executed is None or frame.index != len(done.commands):
            raise RetraceError(f"{name}: calls before frame {frame.index} were dropped")
        for step, command in enumerate(_held(frame, world.look(CAMERAS, True), done, name)):
            if step:
                done.moments.append(world.look(CAMERAS))
            world.follow(command)
            done.commands.append(command)
    last = world.look(CAMERAS, True)
    done.moments.append(last)
    done.success = last.success
    if (info.outcome == "success") is not done.success:
        raise RetraceError(f"{name} was recorded as {info.outcome}, and ends otherwise")
    return done


def _held(frame: Frame, moment: Moment, done: Rollout, name: str) -> Float:
    """Hold a moment to the call that was recorded there; return what the policy commanded."""
    assert frame.call is not None
    if not np.array_equal(frame.state, moment.state):
        raise RetraceError(
            f"{name}, frame {frame.index}: the robot's state is another than recorded"
        )
    for seen in frame.cameras:
        if not _same(seen, moment):
            raise RetraceError(
                f"{name}, frame {frame.index}: {seen.camera} shows something else than recorded"
            )
    done.moments.append(moment)
    return asked(frame.call.actions, moment)[: frame.call.executed]


def _same(seen: CameraFrame, moment: Moment) -> bool:
    """Whether a recorded picture is what the camera shows, kept as the recorder keeps it."""
    kept: VideoFrames = "png" if seen.media_type == "image/png" else "jpeg"
    again = encode(seen.camera, decode(moment.images[seen.camera]), kept, QUALITY)
    return again.data == seen.data
