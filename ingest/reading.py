"""Episodes and observations as the pipeline takes them: what their data raise is theirs.

Every call of a dataset's reader and of a policy's ``prepare`` goes through here
(`attnstore.store.boundary`, decision 018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from attnstore.store.boundary import concerns_all, episode_errors, told
from attnstore.store.errors import EpisodeError, UsageError

from .datasets.base import Dataset, EpisodeInfo, Frame
from .policies.base import Batch, Observation, ObservationError, Policy, PolicyError


def read_info(dataset: Dataset, name: str) -> EpisodeInfo:
    """Describe an episode.

    Raises
    ------
    EpisodeError
        If it is broken, in whatever way.
    """
    with episode_errors(name, "describing the episode"):
        return dataset.info(name)


def read_frames(dataset: Dataset, name: str, indices: Sequence[int]) -> Iterator[Frame]:
    """Yield the asked frames in the given order.

    Raises
    ------
    EpisodeError
        If one cannot be read, in whatever way, or the reader gives another than was asked.
    """
    with episode_errors(name, "reading the frames"):
        frames = iter(dataset.frames(name, indices))
    for index in indices:
        with episode_errors(name, f"reading frame {index}"):
            frame = next(frames, None)
        if frame is None or frame.index != index:
            given = "no more" if frame is None else f"frame {frame.index}"
            raise EpisodeError(name, f"the reader was asked for frame {index} and gave {given}")
        yield frame


def prepare(policy: Policy, observations: Sequence[Observation]) -> Batch:
    """Turn observations into model inputs, or take those that were recorded of them.

    Raises
    ------
    ObservationError
        If the policy cannot take them, in whatever way.
    UsageError
        If recorded inputs are to be made one batch of.
    """
    recorded = [o.recorded for o in observations if o.recorded is not None]
    if recorded and len(observations) > 1:
        raise UsageError(
            "recorded calls are replayed one at a time, since a batch may round otherwise; "
            "leave --batch-size out"
        )
    try:
        batch = _on_device(policy, recorded[0]) if recorded else policy.prepare(observations)
        _check_vocabulary(policy, batch)
        return batch
    except ObservationError:
        raise
    except Exception as error:
        if concerns_all(error) and not isinstance(error, PolicyError):
            raise
        raise ObservationError(f"the policy cannot take the observation: {told(error)}") from error


def _on_device(policy: Policy, batch: Batch) -> Batch:
    return replace(batch, inputs=moved(batch.inputs, str(getattr(policy, "device", "cpu"))))


def moved(inputs: Any, device: str) -> Any:
    """Return nested model inputs with every tensor of torch on a device."""
    if isinstance(inputs, Mapping):
        return {key: moved(value, device) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(moved(value, device) for value in inputs)
    return inputs.to(device) if hasattr(inputs, "detach") else inputs


def _check_vocabulary(policy: Policy, batch: Batch) -> None:
    """Check that the model knows every token: on a GPU an unknown one ends the whole process."""
    known = getattr(policy, "vocabulary", None)
    if known is None:
        return
    for sample in batch.samples:
        for layout in sample.layouts.values():
            for span in layout.key.spans:
                strange = next((t for t in span.tokens if t.id >= known), None)
                if strange is not None:
                    raise ObservationError(
                        f"the tokenizer makes {strange.text!r} token {strange.id}, and the model has "
                        f"{known}: write the instruction without it, or take the tokenizer of this "
                        "checkpoint"
                    )
