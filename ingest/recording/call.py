"""One policy call: what a journal keeps of it, and what the ingest gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import IntegrityError
from attnstore.store.image import decode
from attnstore.store.recordings.call import layouts_to_json, read_call
from attnstore.store.recordings.journal import Entry

from ..datasets.base import CameraFrame, Frame, PolicyCall, VideoFrames
from ..datasets.video import encode
from ..policies.base import Batch, Observation, Sample
from .inputs import Copied, pack_inputs, unpack_inputs

QUALITY = 85
"""Of camera images kept as JPEG: for looking at, since the policy's own inputs are kept beside them."""


@dataclass(frozen=True, slots=True)
class Call:
    """One row of a policy call, in memory of its own, until it is written."""

    number: int
    """Of the episode's calls that were to be recorded, dropped ones included."""
    step: int
    """Environment step at which it happened."""
    at: float
    """Seconds since the episode began."""
    seconds: float
    """How long the policy took."""
    rows: int
    """Observations in the batch that it was a row of."""
    observation: Observation
    """Its images and its state are copies."""
    samples: Sequence[Sample]
    """Of the batch."""
    row: int
    """Which of them is the call's."""
    encoded: tuple[tuple[int, str] | None, ...]
    inputs: Copied
    actions: NDArray[np.float32]
    """The chunk that the policy gave, (horizon, action_dof), normalised units."""
    threads: int | None = None
    """Threads that PyTorch computed with; None without it."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        images = sum(image.nbytes for image in self.observation.images.values())
        return images + self.inputs.nbytes + self.actions.nbytes


def pack_call(
    call: Call, dropped: int, pictures: VideoFrames
) -> tuple[dict[str, Any], list[bytes]]:
    """Return a call as an entry: what it says, and the bytes after it.

    Parameters
    ----------
    dropped
        Calls of the episode that were dropped so far.
    pictures
        How the camera images are kept, which are for looking at.
    """
    seen = [
        encode(camera, np.ascontiguousarray(image), pictures, QUALITY)
        for camera, image in call.observation.images.items()
    ]
    inputs, pieces = pack_inputs(call.inputs)
    sample = call.samples[call.row]
    state = np.asarray(call.observation.state, "<f4")
    actions = np.asarray(call.actions, "<f4")
    head = {
        "kind": "call",
        "number": call.number,
        "step": call.step,
        "at": round(call.at, 6),
        "seconds": round(call.seconds, 6),
        "rows": call.rows,
        "threads": call.threads,
        "dropped": dropped,
        "instruction": call.observation.instruction,
        "seed": call.observation.seed,
        "cameras": [
            {"camera": c.camera, "media_type": c.media_type, "size": len(c.data)} for c in seen
        ],
        "state": list(state.shape),
        "actions": list(actions.shape),
        "sample": {
            "layouts": layouts_to_json(sample.layouts),
            "geometry": {camera: g.to_json() for camera, g in sample.geometry.items()},
        },
        "encoded": [None if e is None else [e[0], e[1]] for e in call.encoded],
        "inputs": inputs,
    }
    return head, [*(c.data for c in seen), state.tobytes(), actions.tobytes(), *pieces]


def unpack_call(entry: Entry, frame: int, executed: int | None, path: Any) -> Frame:
    """Return a call as a frame of a dataset.

    Parameters
    ----------
    frame
        Number of the frame.
    executed
        Actions of the chunk that were carried out, if that is known.

    Raises
    ------
    IntegrityError
        If what the entry says and its bytes contradict each other.
    """
    head = entry.head
    try:
        seen = read_call(entry)
        cameras = tuple(
            CameraFrame(p.camera, p.data, p.media_type, decode(p.data)) for p in seen.pictures
        )
        batch = Batch(
            unpack_inputs(head["inputs"], seen.rest),
            (Sample(dict(seen.layouts), dict(seen.geometry)),),
            tuple(None if e is None else (int(e[0]), str(e[1])) for e in head["encoded"]),
        )
        call = PolicyCall(
            seen.instruction, int(head["seed"]), batch, seen.actions, executed,
            int(head["rows"]), float(head["seconds"]), head["threads"] and int(head["threads"]),
        )  # fmt: skip
        # What the robot did is not known; the chunk that it was given is the call's.
        return Frame(frame, cameras, seen.state, np.zeros(0, np.float32), seen.at, call)
    except IntegrityError:
        raise
    except Exception as error:
        raise IntegrityError(f"{path}: call {head.get('number')}: {error}") from error
