"""One policy call: what a journal keeps of it, and what the ingest gets back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import IntegrityError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Axis, Span, Token, TokenLayout
from attnstore.store.image import decode

from ..datasets.base import CameraFrame, Frame, PolicyCall, VideoFrames
from ..datasets.video import encode
from ..policies.base import Batch, Observation, Sample
from .inputs import Copied, pack_inputs, unpack_inputs
from .journal import Entry

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
    sample: Sample
    encoded: tuple[tuple[int, str] | None, ...]
    inputs: Copied
    actions: NDArray[np.float32]
    """The chunk that the policy gave, (horizon, action_dof), normalised units."""

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
    state = np.asarray(call.observation.state, "<f4")
    actions = np.asarray(call.actions, "<f4")
    head = {
        "kind": "call",
        "number": call.number,
        "step": call.step,
        "at": round(call.at, 6),
        "seconds": round(call.seconds, 6),
        "rows": call.rows,
        "dropped": dropped,
        "instruction": call.observation.instruction,
        "seed": call.observation.seed,
        "cameras": [
            {"camera": c.camera, "media_type": c.media_type, "size": len(c.data)} for c in seen
        ],
        "state": list(state.shape),
        "actions": list(actions.shape),
        "sample": _sample_to_json(call.sample),
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
    head, body, at = entry.head, entry.body, 0
    try:
        cameras = []
        for each in head["cameras"]:
            data = body[at : at + int(each["size"])]
            at += int(each["size"])
            cameras.append(
                CameraFrame(str(each["camera"]), data, str(each["media_type"]), decode(data))
            )
        state, at = _floats(body, at, head["state"])
        actions, at = _floats(body, at, head["actions"])
        batch = Batch(
            unpack_inputs(head["inputs"], body[at:]),
            (_sample_from_json(head["sample"]),),
            tuple(None if e is None else (int(e[0]), str(e[1])) for e in head["encoded"]),
        )
        call = PolicyCall(
            str(head["instruction"]), int(head["seed"]), batch, actions, executed,
            int(head["rows"]), float(head["seconds"]),
        )  # fmt: skip
        # What the robot did is not known; the chunk that it was given is the call's.
        return Frame(frame, tuple(cameras), state, np.zeros(0, np.float32), float(head["at"]), call)
    except IntegrityError:
        raise
    except Exception as error:
        raise IntegrityError(f"{path}: call {head.get('number')}: {error}") from error


def _floats(body: bytes, at: int, shape: Sequence[int]) -> tuple[NDArray[np.float32], int]:
    count = int(np.prod([int(n) for n in shape], dtype=np.int64))
    values = np.frombuffer(body, "<f4", count, at).astype(np.float32).reshape(shape)
    return values, at + 4 * count


def _sample_to_json(sample: Sample) -> dict[str, Any]:
    return {
        "layouts": {
            path: {
                "phase": layout.phase,
                "query": [_span_to_json(s) for s in layout.query],
                "key": [_span_to_json(s) for s in layout.key],
            }
            for path, layout in sample.layouts.items()
        },
        "geometry": {camera: g.to_json() for camera, g in sample.geometry.items()},
    }


def _span_to_json(span: Span) -> dict[str, Any]:
    said = {k: v for k, v in asdict(span).items() if v not in (None, ())}
    if span.tokens:
        said["tokens"] = [[t.id, t.text] for t in span.tokens]
    return said


def _sample_from_json(raw: Mapping[str, Any]) -> Sample:
    return Sample(
        {
            path: TokenLayout(
                layout["phase"],
                Axis(tuple(_span_from_json(s) for s in layout["query"])),
                Axis(tuple(_span_from_json(s) for s in layout["key"])),
            )
            for path, layout in raw["layouts"].items()
        },
        {camera: Geometry.from_json(text) for camera, text in raw["geometry"].items()},
    )


def _span_from_json(raw: Mapping[str, Any]) -> Span:
    values = dict(raw)
    if "grid" in values:
        rows, cols = values["grid"]
        values["grid"] = (rows, cols)
    values["tokens"] = tuple(Token(int(i), str(text)) for i, text in values.get("tokens", ()))
    return Span(**values)
